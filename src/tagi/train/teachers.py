"""The LoRA bank: N LoRAs in lock-step from one shared A₀, more than fit in chunks (§3.2.2)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from tagi import methods
from tagi.backbones.files import read_safetensors
from tagi.backbones.lora import select, stack
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.config import RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.mixture import Mixture, TaskSource
from tagi.data.sources import Sources
from tagi.errors import CheckpointError, ConfigError
from tagi.losses import group_cross_entropy, group_tokens
from tagi.model import bank as banks
from tagi.model import checkpoint
from tagi.model.bank import Bank, BankManifest, BankModel, LoraBank, TeacherEntry, draw_a0
from tagi.model.tagi import TagiModel
from tagi.train import precision
from tagi.train.checkpoints import FINAL, load_tensors
from tagi.train.resume import Record
from tagi.train.stage import Metrics, Stage
from tagi.train.start import start
from tagi.train.trainer import train

CHUNKS, CHUNK_FILE = "chunks", "chunk.safetensors"
LOSS_BATCHES = 4
"""Batches over which the loss in the manifest is taken."""


@dataclass(frozen=True)
class BankStage(Stage):
    """One chunk of teachers as a stage for the trainer; group_index i is teacher i."""

    model: BankModel
    groups: int = field(kw_only=True)
    checkpointing: bool = False

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"ce": group_tokens(batch.labels, batch.task_index, self.groups)}

    def loss(self, model: nn.Module, batch: Batch) -> Metrics:
        rows = Rows.of(batch.task_index, self.groups)
        output = model(batch.input_ids, batch.input_mask, batch.target_ids, rows, self.checkpointing)
        return {"ce": group_cross_entropy(output.logits, batch.labels, batch.task_index, self.groups)}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the chunks of one bank share."""

    config: RunConfig
    base: TagiModel
    collator: Collator
    sources: Mapping[str, TaskSource]
    chunks: tuple[tuple[str, ...], ...]
    a0: Mapping[Site, torch.Tensor]
    fingerprint: str
    """Of the language model as it was loaded: training rounds it in place and moves it to the training device."""
    previous: Bank | None
    """The bank that single teachers are added to."""
    record: Record

    @property
    def final(self) -> Path:
        """Where the bank lies."""
        return Path(self.config.output) / FINAL

    def place(self, chunk: Sequence[str]) -> Path:
        """Where a chunk trains; the name says which groups are in it, so that another choice never resumes it."""
        return Path(self.config.output) / CHUNKS / sha256("\n".join(chunk).encode()).hexdigest()[:12]


def plan_teachers(config: RunConfig, processes: int = 1, sources: Sources | None = None) -> Plan:
    """The base model, the groups of tasks and their chunks, no fewer groups than processes."""
    method = methods.of(config)
    sources = sources or Sources()
    of_group = sources.groups(config.data, config.teachers.group, config.demonstrations, config.training.seed)
    chosen = config.teachers.only or tuple(of_group)
    if unknown := sorted(set(chosen) - of_group.keys()):
        raise ConfigError(f"teachers.only: {unknown[0]!r} is no group; there are {', '.join(of_group)}")
    if processes > len(chosen):
        raise ConfigError(f"{processes} processes for {len(chosen)} groups of tasks; start at most one for each group")
    size = min(config.teachers.parallel, -(-len(chosen) // processes))
    chunks = tuple(chosen[i : i + size] for i in range(0, len(chosen), size))
    begin = start(config, sources=sources)
    base = TagiModel(begin.model.backbone, method, config.hypernetwork, config.fusion)
    collator = Collator(begin.tokenizer, config.prompt, method, joined=not base.backbone.has_encoder)
    fingerprint = begin.settings.backbone_fingerprint
    previous, bank = _previous(config, base, fingerprint), config.teachers
    if previous is not None:
        a0 = previous.a0
    else:
        lora = base.backbone.sites("lora", bank.target_modules)
        generator = torch.Generator().manual_seed(config.training.seed)
        a0 = draw_a0(lora, bank.rank, lambda site: base.backbone.site_shape(site)[0], generator)
    record = Record.of(config, 1, sources)
    return Plan(config, base, collator, of_group, chunks, a0, fingerprint, previous, record)


def train_teachers(plan: Plan, *, resume: bool = False) -> Path:
    """Train every chunk and gather the bank in `output/final`; gives that folder.

    With several processes each trains its own share of the chunks; nothing is exchanged between them.

    Raises:
        CheckpointError: a bank is there already and neither `resume` nor `teachers.only` says what to do with it.
        TrainingError, DiskError: see `trainer.train`.
    """
    state = PartialState()
    for chunk in plan.chunks[state.process_index :: state.num_processes]:
        train(bank_stage(plan, chunk), plan.config.training, plan.place(chunk), resume=resume)
    state.wait_for_everyone()
    if state.is_main_process:
        banks.save(_gathered(plan), plan.final)
        shutil.rmtree(plan.final.with_name(CHUNKS))
    state.wait_for_everyone()
    return plan.final


def bank_stage(plan: Plan, chunk: Sequence[str]) -> BankStage:
    """The stage that trains the teachers of one chunk."""
    backbone = plan.base.backbone
    widths_out = {site: backbone.site_shape(site)[1] for site in plan.a0}
    model = BankModel(plan.base, LoraBank(plan.a0, widths_out, len(chunk), plan.config.teachers.scale))

    def write(folder: Path) -> None:
        plan.record.write(folder)
        tensors = model.bank.state_dict()
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, folder / CHUNK_FILE)

    def read(folder: Path) -> None:
        load_tensors(model.bank, read_safetensors(folder / CHUNK_FILE), folder)

    return BankStage(
        model,
        {"teachers": list(model.bank.parameters())},
        _group_batches(plan, chunk),
        write,
        read,
        plan.record.check,
        groups=len(chunk),
        checkpointing=plan.config.training.activation_checkpointing,
    )


def _group_batches(plan: Plan, chunk: Sequence[str]) -> Callable[[int], Batch]:
    """Batches in which each group_index's rows come from its own group, in an order that only its name decides."""
    training = plan.config.training
    mixtures = [
        Mixture(
            plan.sources[group],
            tasks=training.tasks_per_batch,
            rows=training.rows_per_task,
            seed=(training.seed << 32) + crc32(group.encode()),
        )
        for group in chunk
    ]

    def batch(index: int) -> Batch:
        drawn = [group for mixture in mixtures for group in mixture.batch(index)]
        collated = plan.collator(drawn)
        return replace(collated, task_index=collated.task_index // training.tasks_per_batch)

    return batch


def _previous(config: RunConfig, base: TagiModel, fingerprint: str) -> Bank | None:
    final = Path(config.output) / FINAL
    if not final.exists():
        return None
    if not config.teachers.only:
        raise CheckpointError(f"{final}: already holds a bank; name groups in teachers.only, or choose another output")
    bank = banks.load(final, base.backbone)
    banks.check(bank, final, fingerprint, config.teachers.rank, config.teachers.target_modules)
    for name, there, asked in (
        ("scale", bank.manifest.scale, config.teachers.scale),
        ("reads", bank.manifest.reads, config.method),
    ):
        if there != asked:  # the manifest has one for all teachers
            raise CheckpointError(f"{final}: {name}: is {there}, but this run has {asked}; choose another output")
    return bank


def _gathered(plan: Plan) -> Bank:
    """The finished chunks, and the teachers of an earlier bank that were not trained again, as one bank on the CPU."""
    device, bits = PartialState().device, plan.config.training.precision
    assert device is not None
    entries: list[TeacherEntry] = []
    loras: list[Mapping[Site, Factors]] = []
    for chunk in plan.chunks:
        stage = bank_stage(plan, chunk)
        stage.read(plan.place(chunk) / FINAL)
        lora = stage.model.bank()  # as it was read, before it is rounded and moved to another device
        loras.append({site: replace(f, a=f.a.detach(), b=f.b.detach()) for site, f in lora.items()})
        losses = lane_losses(stage, bits, device).tolist()
        entries += [_entry(plan, group, loss) for group, loss in zip(chunk, losses, strict=True)]
    if plan.previous is not None:
        trained = {entry.group for entry in entries}
        kept = [i for i, entry in enumerate(plan.previous.manifest.teachers) if entry.group not in trained]
        entries = [*(plan.previous.manifest.teachers[i] for i in kept), *entries]
        loras.insert(0, select(plan.previous.lora, torch.tensor(kept, dtype=torch.long)))
    config, teachers = plan.config, plan.config.teachers
    source = config.start_from or (config.backbone.path if config.backbone is not None else None)
    base, seen = checkpoint.placed(str(source), plan.final)
    manifest = BankManifest(
        base=base,
        base_from_here=seen,
        base_fingerprint=plan.fingerprint,
        reads=config.method,
        rank=teachers.rank,
        target_modules=teachers.target_modules,
        scale=teachers.scale,
        teachers=tuple(entries),
    )
    return Bank(manifest, stack(loras), plan.a0)


def _entry(plan: Plan, group: str, loss: float) -> TeacherEntry:
    """What the manifest says of a teacher."""
    tasks = [plan.sources[group].task(i, 0) for i in range(len(plan.sources[group]))]
    digest = sha256()  # of names, definitions and the first 8 examples
    for task in tasks:
        digest.update(repr((task.name, task.instruction, len(task.examples))).encode())
        digest.update(repr(list(task.examples[:8])).encode())
    return TeacherEntry(
        group=group,
        tasks=tuple(task.name for task in tasks),
        steps=plan.config.training.steps,
        loss=loss,
        data_fingerprint=digest.hexdigest()[:16],
        file=banks.file_name(group),
    )


@torch.no_grad()
def lane_losses(stage: BankStage, bits: str, device: torch.device) -> torch.Tensor:
    """Nats per target token of each teacher over its first batches, (N,), where and as it was trained."""
    precision.lower(stage.model, bits)
    stage.model.to(device).eval()
    losses = [stage.loss(stage.model, stage.batch(i).to(device))["ce"] for i in range(LOSS_BATCHES)]
    totals = torch.stack([loss.total for loss in losses]).sum(0)
    return totals / torch.stack([loss.count for loss in losses]).sum(0)
