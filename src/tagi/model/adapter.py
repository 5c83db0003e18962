"""The task adapter: what one instruction becomes, as a value, and as a folder on disk.

Kept are A and B of every module and the encoded instruction I; keys and values of I are computed again on load.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tagi.errors import CheckpointError
from tagi.model import lora as lora_ops
from tagi.model.backbone import Factors, Modules, Site
from tagi.model.t5 import T5
from tagi.model.t5_hf import read_safetensors

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True, slots=True)
class TaskAdapter:
    """Generated modules (LoRA, prefix, bottleneck) and instruction memory of T tasks (T = 1 for a single one).

    No modules and a memory of length 0 are the neutral element: the model wearing it is the bare model.
    """

    modules: Modules
    memory: Tensor  # (T, S, D)
    mask: Tensor  # (T, S), 1 where a token is

    @property
    def tasks(self) -> int:
        """How many tasks are stacked here."""
        return self.memory.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        factors = (x for f in self.modules.values() for x in (f.a, f.b))
        return sum(x.numel() * x.element_size() for x in (self.memory, self.mask, *factors))

    def select(self, index: Tensor) -> "TaskAdapter":
        """The adapters of some tasks, in the order of `index`."""
        return TaskAdapter(lora_ops.select(self.modules, index), self.memory[index], self.mask[index])

    def to(self, device: torch.device) -> "TaskAdapter":
        """The same adapter on another device."""
        moved = {site: replace(f, a=f.a.to(device), b=f.b.to(device)) for site, f in self.modules.items()}
        return TaskAdapter(moved, self.memory.to(device), self.mask.to(device))

    def without_modules(self) -> "TaskAdapter":
        """Memory and fusion only."""
        return replace(self, modules={})

    def without_memory(self) -> "TaskAdapter":
        """LoRA only: the instruction memory is empty."""
        return replace(self, memory=self.memory[:, :0], mask=self.mask[:, :0])

    def with_modules_of(self, other: "TaskAdapter") -> "TaskAdapter":
        """Own memory with another task's LoRA."""
        return replace(self, modules=other.modules)


def stack(adapters: Sequence[TaskAdapter]) -> TaskAdapter:
    """Several adapters as one, so that every row of a batch can wear its own; memories are padded."""
    longest = max(one.memory.shape[1] for one in adapters)
    memory = [F.pad(one.memory, (0, 0, 0, longest - one.memory.shape[1])) for one in adapters]
    mask = [F.pad(one.mask, (0, longest - one.mask.shape[1])) for one in adapters]
    return TaskAdapter(lora_ops.stack([one.modules for one in adapters]), torch.cat(memory), torch.cat(mask))


def unstack(adapter: TaskAdapter) -> list[TaskAdapter]:
    """The adapters of single tasks, each memory as long as its own instruction."""
    ends = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in adapter.mask]
    each = [adapter.select(torch.tensor([number], device=adapter.mask.device)) for number in range(adapter.tasks)]
    return [
        replace(one, memory=one.memory[:, :end], mask=one.mask[:, :end]) for one, end in zip(each, ends, strict=True)
    ]


def merge(backbone: T5, lora: Modules) -> T5:
    """A copy of the backbone with one task's LoRA added into its weights: W + ΔW.

    Raises:
        ValueError: `lora` holds more than one task.
    """
    merged = copy.deepcopy(backbone)
    weights = merged.site_weights()
    with torch.no_grad():
        for site, factors in lora_ops.folded(lora, weights).items():
            if factors.whole is None:
                raise ValueError(f"{site.place}: only LoRA can be merged into the weights")
            weights[site].copy_(factors.whole)
    return merged


def to_bytes(adapter: TaskAdapter) -> bytes:
    """An adapter as the content of one safetensors file."""
    return save_bytes(_tensors(adapter), metadata={"scales": json.dumps(_scales(adapter))})


def from_bytes(data: bytes, sites: Sequence[Site], path: Path) -> TaskAdapter:
    """What `to_bytes` gave, read from `path`.

    Raises:
        CheckpointError: damaged, or of sites that this model does not have.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        scales: dict[str, float] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["scales"])
        return _assembled(load_bytes(data), scales, sites, path)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is no task adapter or is damaged") from error


def _tensors(adapter: TaskAdapter) -> dict[str, Tensor]:
    tensors = {"memory": adapter.memory, "mask": adapter.mask.to(torch.uint8)}
    for site, factors in adapter.modules.items():
        tensors |= {f"{site}.A": factors.a, f"{site}.B": factors.b}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _scales(adapter: TaskAdapter) -> dict[str, float]:
    return {str(site): factors.scale for site, factors in adapter.modules.items()}


def save(adapter: TaskAdapter, folder: Path, identity: Mapping[str, Any]) -> None:
    """Write one task's adapter; `identity` says which model and instruction it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(adapter), folder / WEIGHTS)
    config = {"format": 1, "scales": _scales(adapter), **identity}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def load(folder: Path, sites: Sequence[Site]) -> tuple[TaskAdapter, dict[str, Any]]:
    """Read an adapter and its identity back.

    Raises:
        CheckpointError: no adapter folder, a damaged file, or sites that this model does not have.
    """
    config = _read_config(folder / CONFIG)
    return _assembled(read_safetensors(folder / WEIGHTS), config["scales"], sites, folder / WEIGHTS), config


def _assembled(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], sites: Sequence[Site], file: Path
) -> TaskAdapter:
    if unknown := sorted(scales.keys() - {str(site) for site in sites}):
        raise CheckpointError(f"{file}: site {unknown[0]} does not exist in this model")
    needed = {"memory", "mask"} | {f"{name}.{factor}" for name in scales for factor in "AB"}
    if missing := sorted(needed - tensors.keys()):
        raise CheckpointError(f"{file}: tensor {missing[0]} is missing")
    modules = {
        site: Factors(tensors[f"{site}.A"], tensors[f"{site}.B"], scales[str(site)])
        for site in sites
        if str(site) in scales
    }
    return TaskAdapter(modules, tensors["memory"], tensors["mask"].long())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.parent}: is no task adapter ({path.name} is missing or damaged)") from error
    if not isinstance(config, dict) or not isinstance(config.get("scales"), dict):
        raise CheckpointError(f"{path}: scales: must map every site to its LoRA scale")
    return config
