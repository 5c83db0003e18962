"""The LoRA bank: one LoRA for each group of tasks, trained on instances instead of written (§3.2.2).

A bank is a folder of `bank.json` (the manifest), `a0.safetensors` (the matrix per site that every teacher and the
generator start from) and `teachers/GROUP.safetensors`, one file for each teacher.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from tagi.backbones.base import Backbone
from tagi.backbones.files import check_shape, check_type, read_safetensors
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.config import Frozen, Positive, Target
from tagi.config.files import read_json
from tagi.errors import CheckpointError, ConfigError
from tagi.files import atomic_folder
from tagi.model.tagi import Output, TagiModel, neutral

MANIFEST, START, TEACHERS = "bank.json", "a0.safetensors", "teachers"
FORMAT = 1


class TeacherEntry(Frozen):
    """What the manifest says of one teacher."""

    group: str
    tasks: tuple[str, ...]
    steps: int
    loss: float
    """Nats per target token on its own training rows, after training."""
    data_fingerprint: str
    file: str


class BankManifest(Frozen):
    """`bank.json`."""

    format: int = FORMAT
    base: str
    """Where the language model under the LoRAs came from, a whole path or a hub name."""
    base_from_here: str | None = None
    """The same folder as seen from the bank's, where it lies on the same machine."""
    base_fingerprint: str
    reads: str
    """The method by which that model read its rows: `no_instruction` (b) or a prompt method (a; b)."""
    rank: Positive
    target_modules: tuple[Target, ...] = ("q", "v")
    scale: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    teachers: tuple[TeacherEntry, ...]


@dataclass(frozen=True, slots=True)
class Bank:
    """N per-task LoRAs in memory, in the manifest's order."""

    manifest: BankManifest
    lora: Mapping[Site, Factors]  # a (N, r, in), b (N, out, r)
    a0: Mapping[Site, Tensor]  # (r, in)

    def group_of_task(self) -> dict[str, int]:
        """The teacher of every task that has one, by task name."""
        return {
            task: group_index for group_index, teacher in enumerate(self.manifest.teachers) for task in teacher.tasks
        }

    def teacher(self, group: str) -> dict[Site, Factors]:
        """One teacher's LoRA (T = 1).

        Raises:
            ConfigError: no teacher of that group.
        """
        groups = [teacher.group for teacher in self.manifest.teachers]
        if group not in groups:
            raise ConfigError(f"teacher: {group!r} is not in the bank; it has {', '.join(groups)}")
        group_index = groups.index(group)
        return {
            site: replace(f, a=f.a[group_index : group_index + 1], b=f.b[group_index : group_index + 1])
            for site, f in self.lora.items()
        }


class LoraBank(nn.Module):
    """N LoRAs of every site as trainable tensors: A starts at the shared A₀, B at zero."""

    def __init__(self, a0: Mapping[Site, Tensor], widths_out: Mapping[Site, int], groups: int, scale: float) -> None:
        super().__init__()
        self.sites, self.scale = tuple(a0), scale
        self.a = nn.ParameterList(nn.Parameter(x.expand(groups, *x.shape).clone()) for x in a0.values())
        self.b = nn.ParameterList(
            nn.Parameter(x.new_zeros(groups, widths_out[site], x.shape[0])) for site, x in a0.items()
        )

    def forward(self) -> dict[Site, Factors]:
        """The LoRA of all N groups."""
        factors = zip(self.sites, self.a, self.b, strict=True)
        return {site: Factors(a, b, self.scale) for site, a, b in factors}


class BankModel(nn.Module):
    """A language model under N LoRAs at once: each row runs with the LoRA of its own group_index."""

    def __init__(self, base: TagiModel, bank: LoraBank) -> None:
        super().__init__()
        self.base, self.bank = base, bank

    def forward(
        self, input_ids: Tensor, input_mask: Tensor, target_ids: Tensor, rows: Rows, checkpointing: bool = False
    ) -> Output:
        """Inputs (R, N) and targets (R, O) to logits (R, O, V); `rows` assigns rows to groups."""
        adapter = replace(neutral(self.base.backbone, rows.tasks), modules=self.bank())
        return self.base.respond(adapter, input_ids, input_mask, target_ids, rows, checkpointing=checkpointing)


def draw_a0(
    sites: Sequence[Site], rank: int, width_in: Callable[[Site], int], generator: torch.Generator
) -> dict[Site, Tensor]:
    """A random A₀ for every site, with standard deviation in^-0.5."""
    widths = [width_in(site) for site in sites]
    return {
        site: torch.randn(rank, width, generator=generator) * width**-0.5
        for site, width in zip(sites, widths, strict=True)
    }


def save(bank: Bank, folder: Path) -> None:
    """Write a bank whole or not at all.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    with atomic_folder(folder) as draft:
        (draft / TEACHERS).mkdir()
        save_file({str(site): x.contiguous() for site, x in bank.a0.items()}, draft / START)
        for teacher in bank.manifest.teachers:
            tensors: dict[str, Tensor] = {}
            for site, f in bank.teacher(teacher.group).items():
                tensors |= {f"{site}.A": f.a[0], f"{site}.B": f.b[0]}
            whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
            save_file(whole, draft / TEACHERS / teacher.file)
        (draft / MANIFEST).write_text(bank.manifest.model_dump_json(indent=2), encoding="utf-8")


def load(folder: Path, model: Backbone) -> Bank:
    """Read a bank for a language model.

    Raises:
        CheckpointError: no bank, a damaged one, or tensors of another rank than the manifest says, that do not fit the
            language model, or are no finite numbers; names file and tensor.
    """
    manifest = read_manifest(folder)
    start, rank = read_safetensors(folder / START), manifest.rank
    files = [folder / TEACHERS / teacher.file for teacher in manifest.teachers]
    tensors = [(file, read_safetensors(file)) for file in files]

    def stacked(name: str, *shape: int) -> Tensor:
        return torch.stack([_take(found, name, file, shape) for file, found in tensors])

    a0: dict[Site, Tensor] = {}
    lora: dict[Site, Factors] = {}
    for site in model.sites("lora", manifest.target_modules):
        width_in, width_out = model.site_shape(site)
        a0[site] = _take(start, str(site), folder / START, (rank, width_in))
        lora[site] = Factors(
            stacked(f"{site}.A", rank, width_in), stacked(f"{site}.B", width_out, rank), manifest.scale
        )
    return Bank(manifest, lora, a0)


def read_manifest(folder: Path) -> BankManifest:
    """The manifest of a bank folder.

    Raises:
        CheckpointError: no bank, one without teachers, or a damaged manifest.
    """
    manifest = read_json(BankManifest, folder / MANIFEST, "LoRA bank")
    if not manifest.teachers:
        raise CheckpointError(f"{folder / MANIFEST}: teachers: there is none")
    if any(Path(teacher.file).name != teacher.file for teacher in manifest.teachers):
        raise CheckpointError(f"{folder / MANIFEST}: teachers.file: must be a plain file name")
    return manifest


def check(bank: Bank, source: Path, base_fingerprint: str, rank: int, targets: tuple[Target, ...]) -> None:
    """Refuse a bank that does not fit.

    Raises:
        CheckpointError: it was trained on another language model, or has another rank or other target modules.
    """
    manifest = bank.manifest
    if manifest.base_fingerprint != base_fingerprint:
        raise CheckpointError(
            f"{source}: the bank was trained on another language model (fingerprint {manifest.base_fingerprint}, "
            f"here {base_fingerprint})"
        )
    if manifest.rank != rank:
        raise CheckpointError(f"{source}: the bank has rank {manifest.rank}, but this run has rank {rank}")
    if manifest.target_modules != targets:
        raise CheckpointError(
            f"{source}: the bank adapts {', '.join(manifest.target_modules)}, but this run {', '.join(targets)}"
        )


def file_name(group: str) -> str:
    """A file name for a group: its readable part and a hash that keeps groups apart."""
    readable = re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")[:60]
    return f"{readable}-{sha256(group.encode()).hexdigest()[:8]}.safetensors"


def _take(tensors: Mapping[str, Tensor], name: str, file: Path, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{file}: tensor {name} is missing; the bank belongs to another language model")
    check_shape(file, name, tensors[name], *shape)
    check_type(file, name, tensors[name])
    return tensors[name]
