"""A second device on a machine that has none: tensors "elsewhere" compute, and refuse to meet those on the CPU.

Inside `second_device()` the meta device stands for an accelerator. Whatever is moved or made there is an `Elsewhere`
around an ordinary tensor; an operation that gets both kinds fails, as it does on a GPU. Numbers of no dimension may
come along from the CPU, as there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class Elsewhere(Tensor):
    """A tensor that says it lies on the second device."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Elsewhere"], held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Numbers in and out: `torch.tensor(…, device=…)` makes none where the device is called meta, nor does `tolist`
    read those of a tensor that wraps another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].held.tolist()
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The second device, for the time of a block."""
    with _Literals(), _Mode():
        yield DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = any(isinstance(x, Elsewhere) for x in given)
    device: torch.device | None = kwargs.get("device")
    if there and device is None and func is not torch.ops.aten.copy_.default:
        stray = [tuple(x.shape) for x in given if x.dim() and not isinstance(x, Elsewhere)]
        assert not stray, f"{func}: a tensor {stray[0]} lies on the CPU, others on the second device"
    if device is not None:
        there, kwargs = device == DEVICE, kwargs | {"device": torch.device("cpu")}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func.overloadpacket.__name__.endswith("_") and isinstance(args[0], Tensor):
        return args[0]  # in place
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, result) if there else result


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value
