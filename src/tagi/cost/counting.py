"""FLOPs and memory of a piece of work, counted while it runs, on meta tensors as on real ones.

Attention is counted unfused: torch's counter takes the fused kernel of the CPU for nothing.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

Made = TypeVar("Made")
_NUMBER, _DROPOUT = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.bernoulli_.float


class Meta(TorchDispatchMode):
    """Meta tensors hold no numbers; whoever asks for one is told 1, which says of a mask that nothing is padding."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 1 if func is _NUMBER and args[0].is_meta else func(*args, **(kwargs or {}))


def flops(work: Callable[[], Made]) -> tuple[int, Made]:
    """Floating-point operations of matrix products, a multiply-add is two; and what the work gives."""
    with sdpa_kernel(SDPBackend.MATH), Meta(), FlopCounterMode(display=False) as counter:
        made = work()
    return counter.get_total_flops(), made


class Memory(Meta):
    """Bytes of the tensors that are made while it is entered, for as long as they live."""

    def __init__(self, held: Iterable[Tensor], parts: int = 1) -> None:
        """`held` are the tensors that are there already; `parts` are those of the work that have peaks of their own."""
        super().__init__()
        self.live, self.peaks, self._part = 0, [0] * parts, 0
        self._sizes = WeakIdKeyDictionary({tensor.untyped_storage(): [0] for tensor in held})

    def begin(self, part: int) -> None:
        """From here on it is another part of the work."""
        self._part = part
        self.peaks[part] = max(self.peaks[part], self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._sizes:
                size = self._sizes[storage] = [0]
                self._resize(size, storage.nbytes())
                weakref.finalize(storage, self._resize, size, 0)
        if func is _DROPOUT:  # a byte a value is what accelerators keep of its mask
            self._resize(self._sizes[args[0].untyped_storage()], args[0].numel())
        return made

    def _resize(self, size: list[int], to: int) -> None:
        self.live += to - size[0]
        self.peaks[self._part] = max(self.peaks[self._part], self.live)
        size[0] = to
