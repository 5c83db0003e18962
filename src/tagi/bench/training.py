"""What training costs: the teacher bank against separate runs, TAGI's step against metatraining's, our T5 against
`transformers`', on prompts and on packed text.

All on random token ids of given lengths, which cost what real ones cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tagi import methods
from tagi.backbones.language_model import as_t5
from tagi.backbones.t5.model import T5, initialise
from tagi.bench.models import as_transformers
from tagi.bench.timing import Comparison, Group, Progress, alternate
from tagi.config import CorpusConfig, FusionConfig, HypernetworkConfig, T5Shape, TrainingConfig
from tagi.data.collate import Batch
from tagi.data.segments import TokenStore
from tagi.errors import ConfigError
from tagi.losses import IGNORE
from tagi.model import tagi as tagi_module
from tagi.model.bank import Bank, BankManifest, BankModel, LoraBank, TeacherEntry, draw_a0
from tagi.model.tagi import TagiModel
from tagi.pretraining.packing import DENSITY, MEAN_SPAN, PackedBatch, PackedText, SpanCorruption
from tagi.pretraining.stage import PackedStage, PackedT5
from tagi.train import optim
from tagi.train.align import alignment_term
from tagi.train.distill import distillation_term, instruct_teacher
from tagi.train.logits import CacheIdentity, LogitCache
from tagi.train.stage import LABELS, ModelStage, Stage
from tagi.train.teachers import BankStage

TEMPERATURE = 2.0
CACHED_TOP_K = 64
_STEPS_A_ROUND = 2


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of an instruction, an input and a target; tasks in a batch and rows of each."""

    instruction: int = 128
    input: int = 64
    target: int = 16
    tasks: int = 8
    rows: int = 4


def bank_against_peft(shape: T5Shape, teachers: int, rows: int, rank: int, rounds: int, report: Progress) -> Comparison:
    """One step of N teachers in lock-step against one step each of N `peft` models, one after another.

    Raises:
        ConfigError: `peft` is not installed.
    """
    lengths = Lengths(instruction=0, tasks=teachers, rows=rows)
    base = _model("no_instruction", shape, rank)
    stage = _bank_stage(base, teachers, rank, lengths)
    one_by_one = _peft_steps(as_t5(base.backbone), teachers, rank, _batch(lengths, shape))
    cases = {"peft, one after another": one_by_one, "bank in lock-step": _step(stage, _TEACHER_TRAINING)}
    return alternate(Group(f"{teachers} teachers of {rows} rows", cases), rounds, report)


def step_against_metatraining(
    shape: T5Shape, lengths: Lengths, rank: int, rounds: int, folder: Path, report: Progress
) -> Comparison:
    """A metatraining step, and TAGI's steps on the same examples: with cached teacher logits and alignment.

    Three of TAGI's: frozen backbone (the paper), trained along (from random initialisation), and the frozen one with
    its teacher asked online.
    """
    batch, reader = _batch(lengths, shape), _model("metatrain", shape, rank)
    meta = ModelStage(reader, {}, lambda _: batch.as_prompt(), _nothing, _nothing)
    cases = {"metatraining": _step(_training(meta, ("backbone",)), _PLAIN)}
    online = instruct_teacher(_model("metatrain", shape, rank), TEMPERATURE)
    kept = CacheIdentity(
        teacher="bench", temperature=TEMPERATURE, top_k=min(CACHED_TOP_K, shape.vocab_size), vocabulary=shape.vocab_size
    )
    cached = LogitCache(folder, kept, online)
    frozen, joint = ("hypernetwork", "fusion"), ("backbone", "hypernetwork", "fusion")
    for name, teacher, parts in (
        ("TAGI, frozen backbone, cached teacher, alignment", cached, frozen),
        ("TAGI, trained backbone, cached teacher, alignment", cached, joint),
        ("TAGI, frozen backbone, online teacher, alignment", online, frozen),
    ):
        student = _model("tagi", shape, rank)
        terms = (
            *LABELS,
            distillation_term(teacher, 1.0, TEMPERATURE),
            alignment_term(_bank(student, batch), 1.0, "delta"),
        )
        cases[name] = _step(
            _training(ModelStage(student, {}, lambda _: batch, _nothing, _nothing, terms), parts), _PLAIN
        )
    cached(batch)
    cached.flush()
    title = f"{lengths.tasks} tasks x {lengths.rows} rows, {lengths.instruction} + {lengths.input} -> {lengths.target}"
    return alternate(Group(title, cases), rounds, report)


def t5_against_transformers(shape: T5Shape, lengths: Lengths, rounds: int, report: Progress) -> Comparison:
    """A whole training step (forward, backward, clipping, AdamW) of our T5 and of `transformers`' same weights."""
    batch = _batch(lengths, shape).as_prompt()
    ours = _model("metatrain", shape, 1)
    theirs = _transformers_steps(as_t5(ours.backbone), [_tensors(batch)])
    stage = _training(ModelStage(ours, {}, lambda _: batch, _nothing, _nothing), ("backbone",))
    cases = {"transformers": theirs, "ours": _step(stage, _PLAIN)}
    return alternate(Group("T5 training step", cases), rounds, report)


def text_against_transformers(
    shape: T5Shape, corpus: CorpusConfig, rows: int, rounds: int, report: Progress
) -> Comparison:
    """A training step on random documents of many lengths in packed rows, and `transformers` on the same texts.

    Two ways of theirs: the same rows, in which the texts then see each other (T5's own practice), and every text in a
    row of its own, padded to the longest of as many.
    """
    objective = _corruption(shape, corpus)
    text = PackedText(_documents(shape, objective.sentinels), objective, seed=0)
    batch, alone = text.batch(0, rows), _apart(text.batch(0, rows))
    ours = _model("no_instruction", shape, 1)
    cases = {
        "transformers, one text a row": _transformers_steps(as_t5(ours.backbone), alone),
        "transformers, filled rows": _transformers_steps(as_t5(ours.backbone), [_tensors(batch)]),
        "ours, packed": _step(_reading(as_t5(ours.backbone), batch), _PLAIN),
    }
    title = f"{batch.tokens:,} tokens of text, {rows} rows of {corpus.length} + {corpus.target_length}"
    return alternate(Group(title, cases), rounds, report)


_PLAIN = TrainingConfig(steps=1, lr=1e-4)
_TEACHER_TRAINING = TrainingConfig(steps=1, lr=1e-3)


def _nothing(folder: Path) -> None:
    del folder


def _model(method: str, shape: T5Shape, rank: int) -> TagiModel:
    generator = torch.Generator().manual_seed(0)
    backbone = T5(shape)
    initialise(backbone, generator)
    model = TagiModel(backbone, methods.get(method), HypernetworkConfig(rank=rank), FusionConfig())
    tagi_module.initialise(model, generator)
    return model


def _batch(lengths: Lengths, shape: T5Shape) -> Batch:
    """Random ids without padding; prompts are instruction and input together."""
    generator = torch.Generator().manual_seed(1)
    rows = lengths.tasks * lengths.rows

    def ids(count: int, length: int) -> Tensor:
        return torch.randint(2, shape.vocab_size, (count, length), generator=generator)

    instruction, inputs, labels = (
        ids(lengths.tasks, lengths.instruction),
        ids(rows, lengths.input),
        ids(rows, lengths.target),
    )
    task_index = torch.arange(lengths.tasks).repeat_interleave(lengths.rows)
    prompts = torch.cat([instruction[task_index], inputs], dim=1)
    names = tuple(map(str, range(lengths.tasks)))
    masks = [torch.ones_like(x) for x in (instruction, inputs, prompts)]
    return Batch(instruction, masks[0], inputs, masks[1], labels, task_index, names, prompts, masks[2])


def _training(stage: ModelStage, parts: tuple[Any, ...]) -> ModelStage:
    chosen = optim.trainable(stage.model, TrainingConfig(steps=1, trainable=parts))
    return replace(stage, parts=chosen)


def _step(stage: Stage, config: TrainingConfig) -> Callable[[], None]:
    """One round: a few optimizer steps of a stage."""
    optim.freeze(stage.model, stage.parts)
    optimizer = optim.build(stage.parts, config)
    parameters = [p for part in stage.parts.values() for p in part]
    stage.model.train()

    def step() -> None:
        terms = stage.loss(stage.model, stage.batch(0))
        objective = [stage.weights[name] * (term.total / term.count.clamp(min=1)).sum() for name, term in terms.items()]
        _descend(torch.stack(objective).sum(), parameters, optimizer, lanes=stage.lanes is not None)

    return _repeated(step)


def _descend(
    loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, lanes: bool = False
) -> None:
    loss.backward()
    if lanes:
        optim.clip_lanes(parameters, 1.0)
    else:
        nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _repeated(step: Callable[[], None]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(_STEPS_A_ROUND):
            step()

    return several


Tensors = tuple[Tensor, Tensor, Tensor]
"""Input ids, their mask, labels."""


def _tensors(batch: Batch) -> Tensors:
    return batch.input_ids, batch.input_mask, batch.labels


def _transformers_steps(backbone: T5, parts: Sequence[Tensors]) -> Callable[[], None]:
    """One round of steps of `transformers`' T5 with the same weights, each over a batch in so many parts."""
    theirs = as_transformers(backbone).train()
    parameters = list(theirs.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_PLAIN.lr, betas=optim.BETAS, weight_decay=0.0)

    def step() -> None:
        for ids, mask, labels in parts[:-1]:
            theirs(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        ids, mask, labels = parts[-1]
        _descend(theirs(input_ids=ids, attention_mask=mask, labels=labels).loss, parameters, optimizer)

    return _repeated(step)


def _corruption(shape: T5Shape, corpus: CorpusConfig) -> SpanCorruption:
    """Span corruption whose sentinels are the last ids of a vocabulary."""
    marks = tuple(range(shape.vocab_size - 1, shape.vocab_size - 101, -1))
    room = corpus.length, corpus.target_length
    return SpanCorruption(*room, DENSITY, MEAN_SPAN, marks, shape.eos_token_id)


def _documents(shape: T5Shape, sentinels: tuple[int, ...]) -> TokenStore:
    """Random documents as long as the inputs of tasks are: most have tens of tokens, a few have hundreds."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(4.3, 0.9, 2_000)).astype(np.int64) + 3
    return TokenStore(rng.integers(2, min(sentinels), lengths.sum()), np.concatenate(([0], np.cumsum(lengths))))


def _reading(backbone: T5, batch: PackedBatch) -> PackedStage:
    reader = PackedT5(backbone)
    return PackedStage(reader, {"backbone": list(reader.parameters())}, lambda _: batch, _nothing, _nothing)


def _apart(batch: PackedBatch) -> list[Tensors]:
    """The texts of packed rows, each in a row of its own, in batches of as many rows, similar lengths together."""
    each = zip(batch.input_ids, batch.input_owner, batch.labels, batch.target_owner, strict=True)
    pairs = [
        (ids[owner == number], labels[said == number])
        for ids, owner, labels, said in each
        for number in range(1, int(owner.max()) + 1)
    ]
    pairs.sort(key=lambda pair: len(pair[0]))
    rows = len(batch.input_ids)
    return [_padded(pairs[first : first + rows]) for first in range(0, len(pairs), rows)]


def _padded(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensors:
    told, asked = zip(*pairs, strict=True)
    labels = pad_sequence(list(asked), batch_first=True, padding_value=IGNORE)
    return pad_sequence(list(told), True), pad_sequence([torch.ones_like(x) for x in told], True), labels


def _bank_stage(base: TagiModel, teachers: int, rank: int, lengths: Lengths) -> BankStage:
    backbone = as_t5(base.backbone)
    a0 = draw_a0(backbone.sites(), rank, backbone.d_model, torch.Generator().manual_seed(2))
    bank = LoraBank(a0, backbone.shape.inner_dim, teachers, 1.0)
    batch = _batch(lengths, backbone.shape)
    return BankStage(BankModel(base, bank), lambda _: batch, teachers, _nothing, _nothing)


def _peft_steps(backbone: T5, teachers: int, rank: int, batch: Batch) -> Callable[[], None]:
    """One round of N models that each train on their own rows of the batch, one after another."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("this comparison needs peft: pip install peft") from error
    models: list[Any] = [
        get_peft_model(as_transformers(backbone), LoraConfig(r=rank, lora_alpha=rank, target_modules=["q", "v"]))
        for _ in range(teachers)
    ]
    steps = [_peft_step(model, batch, batch.task_index == number) for number, model in enumerate(models)]

    def all_of_them() -> None:
        for step in steps:
            step()

    return all_of_them


def _peft_step(model: Any, batch: Batch, own: Tensor) -> Callable[[], None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_TEACHER_TRAINING.lr, betas=optim.BETAS, weight_decay=0.0)
    ids, mask, labels = batch.input_ids[own], batch.input_mask[own], batch.labels[own]
    model.train()

    def step() -> None:
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        _descend(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE), parameters, optimizer)

    return _repeated(step)


def _bank(student: TagiModel, batch: Batch) -> Bank:
    """A random bank with a teacher for every task of the batch."""
    hypernetwork, backbone = student.hypernetwork, as_t5(student.backbone)
    assert hypernetwork is not None
    generator = torch.Generator().manual_seed(3)
    rank, scale = hypernetwork.config.rank, hypernetwork.config.scale
    a0 = draw_a0(backbone.sites(), rank, backbone.d_model, generator)
    trained = LoraBank(a0, backbone.shape.inner_dim, len(batch.names), scale).requires_grad_(False)
    for parameter in (*trained.a, *trained.b):
        parameter.normal_(0.0, 0.1, generator=generator)
    entries = tuple(
        TeacherEntry(group=name, tasks=(name,), steps=0, loss=0.0, data_fingerprint="", file=name)
        for name in batch.names
    )
    manifest = BankManifest(base="", base_fingerprint="", reads="", rank=rank, scale=scale, teachers=entries)
    return Bank(manifest, trained(), a0)
