"""Time training steps: TAGI's against metatraining's and `peft`'s, the bank of per-task LoRAs against separate runs,
our language model against `transformers`'."""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.command import CHOICES, parser, run, show
from benchmarks.models import DTYPES, Setup, shape_of
from benchmarks.timing import Case, Comparison, alternate
from tagi.config import Part, TrainingConfig
from tagi.cost.step import Lengths
from tagi.data.collate import IGNORE, Batch
from tagi.model.bank import Bank, BankManifest, BankModel, LoraBank, TeacherEntry, draw_a0
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.encodings import encodings
from tagi.train.objectives.align import alignment_term
from tagi.train.objectives.distill import distillation_term, instruct_teacher
from tagi.train.objectives.logits import CacheIdentity, LogitCache
from tagi.train.stage import LABELS, ModelStage, Stage, Term
from tagi.train.teachers import BankStage

RANK = 8
LORA_LR, LR = 1e-3, 1e-4
TEMPERATURE, CACHED_TOP_K = 2.0, 64
BANK_ROWS = 2
"""Of every per-task LoRA in a batch."""
FROZEN: tuple[Part, ...] = ("hypernetwork", "fusion")
"""What is trained on a frozen backbone."""
JOINT: tuple[Part, ...] = ("backbone", *FROZEN)
TextRows = tuple[Tensor, Tensor, Tensor]
"""Ids, their mask and labels, as `transformers` takes them: a decoder-only model's ids go on with the targets."""
TheirLoss = Callable[[Any, TextRows], Tensor]
COMPARISONS = CHOICES["comparison"]


def bank_against_peft(setup: Setup, lengths: Lengths, loras: int) -> Comparison:
    """A step of per-task LoRAs in lock-step against a step each of as many `peft` models, one after another."""
    batch = random_batch(setup, replace(lengths, instruction=0, tasks=loras, rows=loras * BANK_ROWS))
    (base,) = setup.models("no_instruction")
    model = BankModel(base, random_bank(base, loras))
    parts = {"teachers": list(model.bank.parameters())}
    bank = BankStage(model, parts, lambda _: batch, _nothing, _nothing, groups=loras)
    own = [batch.task_index == number for number in range(loras)]
    separate = [their_step(setup.peft(), rows_of(batch, base, rows), LORA_LR) for rows in own]
    cases = {
        "peft, one after another": lambda: [step() for step in separate],
        "bank in lock-step": our_step(bank, LORA_LR),
    }
    return Comparison(f"{loras} LoRAs of {BANK_ROWS} rows", cases)


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
    the instruction in the prompt.

    `transformers` computes the logits of a decoder-only model's whole prompt for its loss, ours those of the targets;
    so does `peft` here in a case of its own.
    """
    batch, (student,) = random_batch(setup, lengths), setup.models("tagi")
    prompts = rows_of(batch.as_prompt(), student)
    cases: dict[str, Case] = {"peft, instruction in the prompt": their_step(setup.peft(), prompts, LORA_LR)}
    if not student.backbone.has_encoder:
        loss = partial(loss_of_targets, targets=lengths.target)
        cases["peft, logits of the targets alone"] = their_step(setup.peft(), prompts, LORA_LR, loss)
    stage = stage_of(student, batch, FROZEN)
    kept = replace(stage, encode=encodings(student, TrainingConfig(steps=1, trainable=FROZEN)))
    cases |= {"TAGI, instructions read": our_step(stage, LORA_LR), "TAGI, instructions kept": our_step(kept, LORA_LR)}
    tokens = len(batch.labels) * (lengths.instruction + lengths.input + lengths.target)
    return Comparison(_title("finetuning on a frozen backbone", lengths), cases, tokens, "tokens")


def against_transformers(setup: Setup, lengths: Lengths) -> Comparison:
    """A whole training step of our language model and of `transformers`' with the same weights."""
    batch, (ours,) = random_batch(setup, lengths).as_prompt(), setup.models("metatrain")
    cases = {
        "transformers": their_step(setup.transformers(), rows_of(batch, ours)),
        "ours": our_step(stage_of(ours, batch, ("backbone",))),
    }
    return Comparison(_title("one language model", lengths), cases)


def _title(what: str, one: Lengths) -> str:
    return f"{what}: {one.tasks} tasks x {one.rows // one.tasks} rows, {one.instruction} + {one.input} -> {one.target}"


def stage_of(model: TagiModel, batch: Batch, parts: tuple[Part, ...], terms: Sequence[Term] = LABELS) -> ModelStage:
    """A stage that trains parts of a model on one batch again and again."""
    trained = optim.trainable(model, TrainingConfig(steps=1, trainable=parts))
    return ModelStage(model, trained, lambda _: batch, _nothing, _nothing, terms=terms)


def our_step(stage: Stage, lr: float = LR) -> Case:
    """A step of a stage."""

    def loss() -> Tensor:
        terms = stage.loss(stage.model, stage.batch(0))
        weighted = [stage.weights[name] * (term.total / term.count.clamp(min=1)).sum() for name, term in terms.items()]
        return torch.stack(weighted).sum()

    optim.freeze(stage.model, stage.parts)
    stage.model.train()
    parameters = [parameter for part in stage.parts.values() for parameter in part]
    clip = nn.utils.clip_grad_norm_ if stage.groups is None else optim.clip_groups
    return _step(loss, parameters, optim.build(stage.parts, TrainingConfig(steps=1, lr=lr)), clip)


def their_loss(model: Any, rows: TextRows) -> Tensor:
    """The loss of a model of `transformers` or `peft`."""
    ids, mask, labels = rows
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def loss_of_targets(model: Any, rows: TextRows, targets: int) -> Tensor:
    """The same of a decoder-only model, from the logits of its last tokens, the targets, alone."""
    ids, mask, labels = rows
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=targets + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, -targets:].flatten())


def their_step(model: Any, rows: TextRows, lr: float = LR, loss: TheirLoss = their_loss) -> Case:
    """A step of a model of `transformers` or `peft`."""
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=optim.BETAS, weight_decay=0.0)
    return _step(partial(loss, model, rows), trained, optimizer, nn.utils.clip_grad_norm_)


def _step(
    loss: Callable[[], Tensor],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    clip: Callable[[list[nn.Parameter], float], object],
) -> Case:
    """Forward, backward, clipping, AdamW."""

    def step() -> None:
        loss().backward()
        clip(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def random_batch(setup: Setup, lengths: Lengths) -> Batch:
    """Random ids without padding; prompts are instruction and input together."""
    tasks, rows = lengths.tasks, lengths.rows
    sizes = (tasks, lengths.instruction), (rows, lengths.input), (rows, lengths.target)
    told, inputs, labels = (torch.randint(2, setup.shape.vocab_size, size) for size in sizes)
    task_index = torch.arange(tasks).repeat_interleave(rows // tasks)
    prompts = torch.cat([told[task_index], inputs], dim=1)
    told_mask, mask, prompt_mask = (torch.ones_like(x) for x in (told, inputs, prompts))
    names = tuple(map(str, range(tasks)))
    return Batch(told, told_mask, inputs, mask, labels, task_index, names, prompts, prompt_mask)


def rows_of(batch: Batch, model: TagiModel, own: Any = slice(None)) -> TextRows:
    """A batch without padding, or some rows of it, for the same language model of `transformers`."""
    ids, mask, labels = (x[own] for x in (batch.input_ids, batch.input_mask, batch.labels))
    if model.backbone.has_encoder:
        return ids, mask, labels
    whole = torch.cat([ids, labels], dim=1)
    return whole, torch.ones_like(whole), torch.cat([torch.full_like(ids, IGNORE), labels], dim=1)


def random_bank(model: TagiModel, loras: int) -> LoraBank:
    """Per-task LoRAs before their first step."""
    shapes = {site: model.backbone.site_shape(site) for site in model.backbone.sites("lora")}
    a0 = draw_a0(tuple(shapes), RANK, lambda site: shapes[site][0], torch.Generator().manual_seed(2))
    widths_out = {site: out for site, (_, out) in shapes.items()}
    return LoraBank(a0, widths_out, loras, 1.0).to(model.backbone.embedding.weight.dtype)


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


def compare(setup: Setup, lengths: Lengths, loras: int, chosen: Sequence[str], rounds: int) -> list[Comparison]:
    """One comparison after another, each alternating in itself: together they would need much memory."""
    timed: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        made = (
            partial(bank_against_peft, setup, lengths, loras),
            partial(against_metatraining, setup, lengths, Path(folder)),
            partial(finetuning_against_peft, setup, lengths),
            partial(against_transformers, setup, lengths),
        )
        for name, comparison in zip(COMPARISONS, made, strict=True):
            if name in chosen:
                timed.append(comparison())
                alternate(timed[-1:], rounds)
    return timed


def main(asked: Namespace) -> None:
    """Compare what was asked for; the defaults are the lengths of `docs/results/training.md`."""
    setup = Setup(shape_of(asked.shape), rank=RANK, dtype=DTYPES[asked.dtype])
    lengths = Lengths(asked.tasks, asked.tasks * asked.rows, asked.instruction, asked.input, asked.target)
    show(asked, compare(setup, lengths, asked.loras, asked.comparison, asked.rounds))


OPTIONS = parser(
    __doc__,
    shape="micro",
    instruction=128,
    input=64,
    target=16,
    tasks=8,
    rows=4,
    loras=16,
    comparison=COMPARISONS,
    dtype="fp32",
    rounds=7,
)
if __name__ == "__main__":
    run(main, OPTIONS)
