"""Time training steps: TAGI's against metatraining's and `peft`'s, the bank of per-task LoRAs against separate runs,
our language model against `transformers`'."""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tagi.train.align import alignment_term
from tagi.train.distill import distillation_term, instruct_teacher
from tagi.train.logits import CacheIdentity, LogitCache
from torch import Tensor, nn

from benchmarks.command import parser, run, show
from benchmarks.models import DTYPES, Setup, shape_of
from benchmarks.timing import Case, Comparison, alternate
from tagi.config import Part, TrainingConfig
from tagi.data.collate import Batch
from tagi.model.bank import Bank, BankManifest, BankModel, LoraBank, TeacherEntry, draw_a0
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.stage import LABELS, ModelStage, Stage, Term
from tagi.train.teachers import BankStage

RANK = 8
LORA_LR, LR = 1e-3, 1e-4
TEMPERATURE, CACHED_TOP_K = 2.0, 64
STEPS_A_ROUND = 2
FROZEN: tuple[Part, ...] = ("hypernetwork", "fusion")
"""What is trained on a frozen backbone."""
JOINT: tuple[Part, ...] = ("backbone", *FROZEN)
TextRows = tuple[Tensor, Tensor, Tensor]
"""Input ids, their mask, labels."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of an instruction, an input and a target; tasks in a batch and rows of each."""

    instruction: int = 128
    input: int = 64
    target: int = 16
    tasks: int = 8
    rows: int = 4


def bank_against_peft(setup: Setup, loras: int, rows: int) -> Comparison:
    """A step of per-task LoRAs in lock-step against a step each of as many `peft` models, one after another."""
    batch = random_batch(setup, Lengths(instruction=0, tasks=loras, rows=rows))
    (base,) = setup.models("no_instruction")
    bank = BankStage(BankModel(base, random_bank(base, loras)), lambda _: batch, loras, _nothing, _nothing)
    each = [rows_of(batch, batch.task_index == number) for number in range(loras)]
    separate = [their_step(setup.peft(), [own], LORA_LR) for own in each]
    cases = {
        "peft, one after another": lambda: [step() for step in separate],
        "bank in lock-step": our_step(bank, LORA_LR),
    }
    return Comparison(f"{loras} LoRAs of {rows} rows", cases)


def against_metatraining(setup: Setup, lengths: Lengths, folder: Path) -> Comparison:
    """A metatraining step, and TAGI's steps on the same examples, distilled and aligned: on a frozen backbone (the
    paper) with cached teacher logits, with the backbone trained along, and frozen with the teacher asked every time."""
    batch, vocabulary = random_batch(setup, lengths), setup.shape.vocab_size
    (reader,), (teacher,) = setup.models("metatrain"), setup.models("metatrain")
    online = instruct_teacher(teacher, TEMPERATURE)
    top_k = min(CACHED_TOP_K, vocabulary)
    kept = CacheIdentity(teacher="random", temperature=TEMPERATURE, top_k=top_k, vocabulary=vocabulary)
    cached = LogitCache(folder, kept, online)
    cached(batch)
    cached.flush()
    cases = {"metatraining": our_step(stage_of(reader, batch.as_prompt(), ("backbone",)))}
    for name, asked, parts in (
        ("TAGI, frozen backbone, cached teacher, alignment", cached, FROZEN),
        ("TAGI, trained backbone, cached teacher, alignment", cached, JOINT),
        ("TAGI, frozen backbone, online teacher, alignment", online, FROZEN),
    ):
        (student,) = setup.models("tagi")
        aligned = alignment_term(trained_bank(student, batch.names), 1.0, "delta")
        terms = (*LABELS, distillation_term(asked, 1.0, TEMPERATURE), aligned)
        cases[name] = our_step(stage_of(student, batch, parts, terms))
    return Comparison(_title("a step", lengths), cases)


def finetuning_against_peft(setup: Setup, lengths: Lengths) -> Comparison:
    """TAGI's step on a frozen backbone, labels alone, against one LoRA of `peft` for all tasks on the same rows with
    the instruction in the prompt."""
    batch = random_batch(setup, lengths)
    prompts, (student,) = rows_of(batch.as_prompt()), setup.models("tagi")
    cases = {
        "peft, one LoRA, instruction in the prompt": their_step(setup.peft(), [prompts], LORA_LR),
        "TAGI, frozen backbone": our_step(stage_of(student, batch, FROZEN), LORA_LR),
    }
    tokens = STEPS_A_ROUND * (prompts[0].numel() + prompts[2].numel())
    return Comparison(_title("finetuning", lengths), cases, tokens, "tokens")


def against_transformers(setup: Setup, lengths: Lengths) -> Comparison:
    """A whole training step of our language model and of `transformers`' with the same weights."""
    batch, (ours,) = random_batch(setup, lengths).as_prompt(), setup.models("metatrain")
    cases = {
        "transformers": their_step(setup.transformers(), [rows_of(batch)]),
        "ours": our_step(stage_of(ours, batch, ("backbone",))),
    }
    return Comparison(_title("one language model", lengths), cases)


def _title(what: str, one: Lengths) -> str:
    return f"{what}: {one.tasks} tasks x {one.rows} rows, {one.instruction} + {one.input} -> {one.target}"


def stage_of(model: TagiModel, batch: Batch, parts: tuple[Part, ...], terms: Sequence[Term] = LABELS) -> ModelStage:
    """A stage that trains parts of a model on one batch again and again."""
    trained = optim.trainable(model, TrainingConfig(steps=1, trainable=parts))
    return ModelStage(model, trained, lambda _: batch, _nothing, _nothing, terms)


def our_step(stage: Stage, lr: float = LR) -> Case:
    """One round of a stage."""
    optim.freeze(stage.model, stage.parts)
    stage.model.train()

    def loss() -> Tensor:
        terms = stage.loss(stage.model, stage.batch(0))
        weighted = [stage.weights[name] * (term.total / term.count.clamp(min=1)).sum() for name, term in terms.items()]
        return torch.stack(weighted).sum()

    parameters = [parameter for part in stage.parts.values() for parameter in part]
    clip = nn.utils.clip_grad_norm_ if stage.lanes is None else optim.clip_lanes
    return _round([loss], parameters, optim.build(stage.parts, TrainingConfig(steps=1, lr=lr)), clip)


def their_step(model: Any, batches: Sequence[TextRows], lr: float = LR) -> Case:
    """One round of a model of `transformers` or `peft`, each step over several batches."""

    def loss(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=optim.BETAS, weight_decay=0.0)
    return _round([partial(loss, *batch) for batch in batches], trained, optimizer, nn.utils.clip_grad_norm_)


def _round(
    losses: Sequence[Callable[[], Tensor]],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    clip: Callable[[list[nn.Parameter], float], object],
) -> Case:
    """A few steps: forward, backward, clipping, AdamW."""

    def several() -> None:
        for _ in range(STEPS_A_ROUND):
            for loss in losses:
                loss().backward()
            clip(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return several


def random_batch(setup: Setup, lengths: Lengths) -> Batch:
    """Random ids without padding; prompts are instruction and input together."""
    tasks, rows = lengths.tasks, lengths.tasks * lengths.rows
    sizes = (tasks, lengths.instruction), (rows, lengths.input), (rows, lengths.target)
    told, inputs, labels = (torch.randint(2, setup.shape.vocab_size, size) for size in sizes)
    task_index = torch.arange(tasks).repeat_interleave(lengths.rows)
    prompts = torch.cat([told[task_index], inputs], dim=1)
    told_mask, mask, prompt_mask = (torch.ones_like(x) for x in (told, inputs, prompts))
    names = tuple(map(str, range(tasks)))
    return Batch(told, told_mask, inputs, mask, labels, task_index, names, prompts, prompt_mask)


def rows_of(batch: Batch, own: Any = slice(None)) -> TextRows:
    """A batch, or some rows of it, as `transformers` takes it."""
    return batch.input_ids[own], batch.input_mask[own], batch.labels[own]


def random_bank(model: TagiModel, loras: int) -> LoraBank:
    """Per-task LoRAs before their first step."""
    a0 = draw_a0(model.backbone.sites("lora"), RANK, model.backbone.d_model, torch.Generator().manual_seed(2))
    return LoraBank(a0, model.backbone.shape.inner_dim, loras, 1.0)


def trained_bank(student: TagiModel, names: Sequence[str]) -> Bank:
    """A random LoRA for every task, which Eq. 4 compares with."""
    trained = random_bank(student, len(names)).requires_grad_(False)
    a0 = {site: a[0].clone() for site, a in zip(trained.sites, trained.a, strict=True)}
    for parameter in (*trained.a, *trained.b):
        parameter.normal_(0.0, 0.1)
    about: dict[str, Any] = {"steps": 0, "loss": 0.0, "data_fingerprint": ""}
    entries = tuple(TeacherEntry(group=name, tasks=(name,), file=name, **about) for name in names)
    manifest = BankManifest(base="", base_fingerprint="", reads="", rank=RANK, scale=1.0, teachers=entries)
    return Bank(manifest, trained(), a0)


def _nothing(folder: Path) -> None:
    del folder


def compare(setup: Setup, lengths: Lengths, loras: int, rows: int, rounds: int) -> list[Comparison]:
    """One comparison after another, each alternating in itself: together they would need much memory.

    Raises:
        ConfigError: `peft` is not installed.
    """
    timed: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        for made in (
            partial(bank_against_peft, setup, loras, rows),
            partial(against_metatraining, setup, lengths, Path(folder)),
            partial(finetuning_against_peft, setup, lengths),
            partial(against_transformers, setup, lengths),
        ):
            timed.append(made())
            alternate(timed[-1:], rounds)
    return timed


def main(asked: Namespace) -> None:
    """Compare at the lengths of `docs/results/training.md`."""
    setup = Setup(shape_of(asked.shape), rank=RANK, dtype=DTYPES[asked.dtype])
    show(asked, compare(setup, Lengths(), 16, 2, asked.rounds))


OPTIONS = parser(__doc__, shape="micro", dtype="fp32", rounds=7)
if __name__ == "__main__":
    run(main, OPTIONS)
