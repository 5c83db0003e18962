"""The task adapter: what one instruction becomes, as a value, and as a folder on disk.

A folder holds `adapter.safetensors` and a model card. The one file says everything that is the task's own, so that no
two can disagree: A and B of every module, or the summaries that they are written from, the encoded instruction I (of a
decoder-only model with its keys and values), and in its metadata the scales and whose the adapter is.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import FiniteFloat, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from tagi import hub
from tagi.backbones import lora as lora_ops
from tagi.backbones.base import Backbone
from tagi.backbones.cache import KeyValue
from tagi.backbones.encoded import Attended, EncodedInstruction, stack_encoded
from tagi.backbones.files import check_finite, check_shape, locate
from tagi.backbones.sites import Factors, Site
from tagi.config import Frozen
from tagi.config.files import parse
from tagi.errors import CheckpointError, ConfigError
from tagi.files import atomic_folder, check_replaceable, read_whole
from tagi.model.cards import CARD, card

WEIGHTS, KIND = "adapter.safetensors", "task adapter"
SUMMARIES = "summaries"
_SAID = "adapter"
"""What the file's metadata say of the adapter."""
SHOWN = 60
"""Characters of an instruction that a printed adapter shows."""
_SITE = TypeAdapter(Site)


class Origin(Frozen):
    """Whose the adapter of one task is, and what it was written from."""

    checkpoint: str
    """Fingerprint of the model that wrote it, with which alone it works."""
    method: str
    definition: str = ""
    """Empty where no instruction was read: a LoRA that was trained elsewhere."""
    demonstrations: tuple[tuple[str, str], ...] = ()
    """Inputs and outputs of the demonstrations."""


class _Said(Frozen):
    """What the metadata of an adapter's file say."""

    format: Literal[3] = 3
    scales: dict[str, FiniteFloat]
    """By the name of a site."""
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TaskAdapter:
    """Generated modules (LoRA, prefix, bottleneck) and encoded instructions of T tasks (T = 1 for a single one).

    No modules and an empty instruction are the neutral element: with it the model is the bare model.

    Adapters are equal if all their numbers and origins are, wherever they lie; like lists they have no hash.
    """

    modules: Mapping[Site, Factors]
    instruction: EncodedInstruction
    origins: tuple[Origin, ...] = ()
    """Of each task; none where the caller keeps account of it himself, as training does."""
    summaries: Tensor | None = None
    """(T, P, r, D), what the generator of states keeps of an instruction; with the generator's own matrices it is the
    LoRA of every site (`TagiModel.modules_of`). None where LoRA is written out in `modules`, or there is none."""

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskAdapter):
            return NotImplemented
        ours, theirs = _tensors(self), _tensors(other)
        return (
            (self.origins, _scales(self), ours.keys()) == (other.origins, _scales(other), theirs.keys())
            and all(theirs[name].dtype == tensor.dtype for name, tensor in ours.items())
            and all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
        )

    def __repr__(self) -> str:
        said = {
            "method": self.origins[0].method if self.origins else None,
            "tasks": self.tasks,
            "rank": self.rank,
            "sites": len(self.modules) or None,
            "summaries": None if self.summaries is None else tuple(self.summaries.shape[1:]),
            "tokens": self.instruction.mask.sum(1).tolist()[:3],
            "instruction": textwrap.shorten(self.origins[0].definition, SHOWN) if self.origins else None,
        }
        return f"TaskAdapter({', '.join(f'{name}={value!r}' for name, value in said.items() if value is not None)})"

    @property
    def rank(self) -> int | list[int] | None:
        """Of the modules that are written out in it, see `tagi.backbones.lora.ranks`."""
        return lora_ops.ranks(self.modules)

    @property
    def tasks(self) -> int:
        """How many tasks are stacked here."""
        return self.instruction.tasks

    @property
    def adapts(self) -> bool:
        """Whether anything is applied to the language model's layers."""
        return bool(self.modules) or self.summaries is not None

    @property
    def written(self) -> tuple[Tensor, ...]:
        """The tensors that were generated."""
        summaries = () if self.summaries is None else (self.summaries,)
        return (*summaries, *(x for f in self.modules.values() for x in f.own))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.instruction.nbytes + sum(x.nbytes for x in self.written)

    def select(self, index: Tensor) -> "TaskAdapter":
        """The adapters of some tasks, in the order of `index`."""
        origins = tuple(self.origins[number] for number in index.tolist()) if self.origins else ()
        summaries = None if self.summaries is None else self.summaries[index]
        modules = lora_ops.select(self.modules, index)
        return TaskAdapter(modules, self.instruction.select(index), origins, summaries)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "TaskAdapter":
        """The same adapter on another device, its numbers of another type if one is given."""
        moved = {site: replace(f, a=f.a.to(device, dtype), b=f.b.to(device, dtype)) for site, f in self.modules.items()}
        summaries = None if self.summaries is None else self.summaries.to(device, dtype)
        return replace(self, modules=moved, instruction=self.instruction.to(device, dtype), summaries=summaries)

    def without_modules(self) -> "TaskAdapter":
        """The encoded instruction only."""
        return replace(self, modules={}, summaries=None)

    def without_instruction(self) -> "TaskAdapter":
        """The modules only: the encoded instruction is empty."""
        return replace(self, instruction=self.instruction.cut(0))

    def with_modules_of(self, other: "TaskAdapter") -> "TaskAdapter":
        """The own instruction with another task's modules."""
        return replace(self, modules=other.modules, summaries=other.summaries)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write one task's adapter whole or not at all; an adapter that lies there already is replaced.

        Raises:
            CheckpointError: several tasks are stacked, or it is not known whose the adapter is.
            DiskError: something else lies there, or the disk is full or cannot be written.
        """
        if self.tasks != 1:
            raise CheckpointError(
                f"{folder}: holds one task, not {self.tasks}; save each of tagi.model.adapter.unstack"
            )
        if not self.origins:
            raise CheckpointError(
                f"{folder}: this adapter does not say which checkpoint it belongs to; `Tagi.adapt` does"
            )
        check_replaceable(Path(folder), WEIGHTS, KIND)
        with atomic_folder(Path(folder)) as draft:
            (draft / WEIGHTS).write_bytes(to_bytes(self))
            (draft / CARD).write_text(_card(self.origins[0]), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """What `save_pretrained` wrote: a folder or a hub name. `Tagi.load_adapter` also checks that it fits a model.

        Raises:
            CheckpointError: no adapter, a damaged file, tensors missing, of shapes that do not belong together, or with
                values that are no finite numbers.
        """
        adapter = read_whole(Path(source), lambda: _read(locate(source)))
        return cls(adapter.modules, adapter.instruction, adapter.origins, adapter.summaries)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, see `tagi.hub.push`."""
        return hub.push(self.save_pretrained, repo_id, **options)


def stack(adapters: Sequence[TaskAdapter]) -> TaskAdapter:
    """Several adapters as one, so that every row of a batch can have its own; instructions are padded.

    Raises:
        ValueError: modules of different sites, kinds or scales.
    """
    modules = lora_ops.stack([one.modules for one in adapters])
    known = all(one.origins for one in adapters)
    origins = tuple(origin for one in adapters for origin in one.origins) if known else ()
    summaries = [one.summaries for one in adapters if one.summaries is not None]
    if 0 < len(summaries) < len(adapters):
        raise ValueError("adapters with LoRA of different kinds or scales cannot share a batch")
    instruction = stack_encoded([one.instruction for one in adapters])
    return TaskAdapter(modules, instruction, origins, torch.cat(summaries) if summaries else None)


def unstack(adapter: TaskAdapter) -> list[TaskAdapter]:
    """The adapters of single tasks, each instruction as long as its own."""
    mask = adapter.instruction.mask
    ends = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in mask]
    each = [adapter.select(torch.tensor([number], device=mask.device)) for number in range(adapter.tasks)]
    return [replace(one, instruction=one.instruction.cut(end)) for one, end in zip(each, ends, strict=True)]


def to_bytes(adapter: TaskAdapter) -> bytes:
    """One task's adapter as the content of one safetensors file, its origin with it if it is known."""
    said = _Said(scales=_scales(adapter), origin=next(iter(adapter.origins), None))
    return save_bytes(_tensors(adapter), metadata={_SAID: said.model_dump_json()})


def from_bytes(data: bytes, path: Path) -> TaskAdapter:
    """What `to_bytes` gave, read from `path`.

    Raises:
        CheckpointError: damaged, or not of one adapter whose parts belong together; names file and field or tensor.
    """
    try:
        tensors = load_bytes(data)
        metadata: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        if _SAID not in metadata:
            raise CheckpointError(f"{path}: is no {KIND} (its metadata do not say whose it is)")
        values = json.loads(metadata[_SAID])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no {KIND}, or is damaged or half-written ({error})") from error
    try:
        said = parse(_Said, values, source=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    modules, instruction = _assembled(tensors, said.scales, path)
    origins = (said.origin,) if said.origin is not None else ()
    return TaskAdapter(modules, instruction, origins, tensors.get(SUMMARIES))


def _read(folder: Path) -> TaskAdapter:
    file = folder / WEIGHTS
    try:
        return from_bytes(file.read_bytes(), file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: is no {KIND} ({WEIGHTS} is missing)") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error


def check_fits(
    adapter: TaskAdapter, backbone: Backbone, file: Path, *, attends: bool, summaries: Sequence[int] | None = None
) -> None:
    """Refuse an adapter, read from `file`, that does not fit a language model, whose inputs attend to instructions or
    do not.

    Args:
        summaries: states, vectors and width that its generator writes, if it writes any.

    Raises:
        CheckpointError: a site that the model does not have, a tensor of another width, or keys and values of another
            number of blocks; names it.
    """
    if adapter.summaries is not None:
        if summaries is None:
            raise CheckpointError(f"{file}: tensor {SUMMARIES} is of states that this model's generator does not read")
        check_shape(file, SUMMARIES, adapter.summaries, adapter.tasks, *summaries)
    known = {*backbone.site_weights(), *backbone.sites("prefix"), *backbone.sites("bottleneck")}
    check_shape(file, "instruction", adapter.instruction.hidden, adapter.tasks, "tokens", backbone.d_model)
    for site, factors in adapter.modules.items():
        if site not in known:
            raise CheckpointError(f"{file}: site {site} does not exist in this model")
        width_in, width_out = backbone.site_shape(site)
        check_shape(file, f"{site}.A", factors.a, adapter.tasks, "rank", width_in)
        check_shape(file, f"{site}.B", factors.b, adapter.tasks, width_out, "rank")
    _check_attended(adapter.instruction, backbone, file, attends=attends)


def _check_attended(instruction: EncodedInstruction, backbone: Backbone, file: Path, *, attends: bool) -> None:
    """Whether keys and values are there for every block of a decoder-only model that attends to them, of its widths."""
    layers = () if instruction.attended is None else instruction.attended.layers
    attends = attends and not backbone.has_encoder and bool(instruction.mask.shape[1])
    expected = backbone.shape.num_layers if attends else 0
    if len(layers) != expected:
        raise CheckpointError(
            f"{file}: holds keys and values of {len(layers)} blocks, but this model needs them of {expected}"
        )
    for number, own in enumerate(layers):
        tasks, tokens, shape = instruction.tasks, instruction.mask.shape[1], backbone.shape
        for name, x in (("k", own.k), ("v", own.v)):
            check_shape(file, f"instruction.{number}.{name}", x, tasks, shape.num_kv_heads, tokens, shape.head_dim)


def _tensors(adapter: TaskAdapter) -> dict[str, Tensor]:
    instruction = adapter.instruction
    tensors = {"instruction": instruction.hidden, "mask": instruction.mask.to(torch.uint8)}
    for number, own in enumerate(() if instruction.attended is None else instruction.attended.layers):
        tensors |= {f"instruction.{number}.k": own.k, f"instruction.{number}.v": own.v}
    if adapter.summaries is not None:
        tensors[SUMMARIES] = adapter.summaries
    for site, factors in adapter.modules.items():
        tensors |= {f"{site}.A": factors.a, f"{site}.B": factors.b}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _scales(adapter: TaskAdapter) -> dict[str, float]:
    return {str(site): factors.scale for site, factors in adapter.modules.items()}


def _card(origin: Origin) -> str:
    about = f"Written by a {origin.method} model with the fingerprint {origin.checkpoint}, with which alone it works."
    if origin.definition:
        about += "\n\nInstruction:\n\n" + "\n".join(f"> {line}" for line in origin.definition.splitlines())
    use = "from tagi import Tagi\n\ntagi = Tagi.from_pretrained(CHECKPOINT)\nadapter = tagi.load_adapter(FOLDER)"
    return card("Task adapter", about, use, library_name="tagi", tags=["tagi", "lora"])


def _assembled(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], file: Path
) -> tuple[dict[Site, Factors], EncodedInstruction]:
    """Modules and instruction of one task, whose shapes belong together."""
    blocks = sum(name.startswith("instruction.") for name in tensors) // 2
    layers = [f"instruction.{number}" for number in range(blocks)]
    needed = {"instruction", "mask"} | {f"{name}.{factor}" for name in scales for factor in "AB"}
    needed |= {f"{name}.{half}" for name in layers for half in "kv"}
    if missing := sorted(needed - tensors.keys()):
        raise CheckpointError(f"{file}: tensor {missing[0]} is missing")
    if unknown := sorted(tensors.keys() - needed - {SUMMARIES}):
        raise CheckpointError(f"{file}: tensor {unknown[0]} belongs to no site that has a scale")
    if (summaries := tensors.get(SUMMARIES)) is not None:
        check_shape(file, SUMMARIES, summaries, 1, "states", "vectors", "width")
        check_finite(file, SUMMARIES, summaries)
    hidden, mask = tensors["instruction"], tensors["mask"]
    check_shape(file, "instruction", hidden, 1, "tokens", "width")
    check_finite(file, "instruction", hidden)
    check_shape(file, "mask", mask, 1, hidden.shape[1])
    if not ((mask == 0) | (mask == 1)).all():
        raise CheckpointError(f"{file}: tensor mask holds something else than 0 and 1")
    read = tuple(_key_value(tensors, name, hidden.shape[1], file) for name in layers)
    attended = Attended(read, mask.bool()) if read else None
    modules = {_site(name, file): _factors(tensors, name, scales[name], file) for name in scales}
    return modules, EncodedInstruction(hidden, mask.bool(), attended)


def _key_value(tensors: Mapping[str, Tensor], name: str, tokens: int, file: Path) -> KeyValue:
    for half in "kv":
        check_shape(file, f"{name}.{half}", tensors[f"{name}.{half}"], 1, "heads", tokens, "width")
        check_finite(file, f"{name}.{half}", tensors[f"{name}.{half}"])
    return KeyValue(tensors[f"{name}.k"], tensors[f"{name}.v"])


def _factors(tensors: Mapping[str, Tensor], name: str, scale: float, file: Path) -> Factors:
    a, b = tensors[f"{name}.A"], tensors[f"{name}.B"]
    check_shape(file, f"{name}.A", a, 1, "rank", "in")
    check_shape(file, f"{name}.B", b, 1, "out", a.shape[1])
    if not a.shape[1]:
        raise CheckpointError(f"{file}: tensor {name}.A has rank 0")
    check_finite(file, f"{name}.A", a)
    check_finite(file, f"{name}.B", b)
    return Factors(a, b, scale)


def _site(name: str, file: Path) -> Site:
    try:
        kind, layer, place = name.rsplit(".", 2)
        return _SITE.validate_python({"kind": kind, "layer": layer, "place": place})
    except ValueError as error:
        raise CheckpointError(f"{file}: {name}: is no site of a module") from error
