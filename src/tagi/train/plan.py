"""What a run would train, in numbers, without its weights: `tagi train … --dry-run`.

The model is built on torch's meta device from its shape alone, so that an 11B run is planned in seconds on a laptop.
A folder that an earlier stage of the same run will write need not be there yet. Nothing is written or downloaded but
the `config.json` of a hub model whose shape the config leaves out. What a step takes here, a few steps tell.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, get_args

import torch

from tagi import methods
from tagi.backbones.language_model import build, read_language_model_shape
from tagi.config import BackboneConfig, FusionConfig, HypernetworkConfig, Part, RunConfig, Shape
from tagi.cost.step import Lengths, Work, bank_model, batch_cost, optimizer_bytes
from tagi.data.sources import Sources
from tagi.errors import CheckpointError, ConfigError
from tagi.methods import Method
from tagi.model import checkpoint
from tagi.model.hypernetwork import parameter_count
from tagi.model.tagi import TagiModel
from tagi.train import measure, optim
from tagi.train.build import build_stage
from tagi.train.checkpoints import FINAL
from tagi.train.measure import Measured
from tagi.train.stage import Parts
from tagi.train.start import random_tokenizer

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a remark."""
GROUPS = {("sni", "category"): 60, ("sni", "task"): 757, ("p3", "category"): 36}
"""Per-task LoRAs of a whole benchmark (the paper's A.3; Wang et al., 2022), where the config does not name them."""
TIMED = 2
"""Steps that are timed, after one that warms up."""
Report = Callable[[int, int], None]


class Model(NamedTuple):
    """What a run's model is built from."""

    shape: Shape
    hypernetwork: HypernetworkConfig
    fusion: FusionConfig


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training step, at its peak."""

    weights: int
    gradients: int
    optimizer: int
    """State, and fp32 masters of weights that compute in fewer bits."""
    activations: int
    total: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run in numbers."""

    stage: str
    method: str
    parameters: dict[str, int]
    """By part: backbone, hypernetwork, fusion; of per-task LoRAs, those of one chunk."""
    trainable: list[str]
    hypernetwork_share: float
    steps: int
    rows_per_step: float
    tokens_per_step: float
    tokens_are: Literal["measured", "upper bound"]
    flops_per_step: float
    flops: float
    memory: Memory
    notes: list[str]
    output: str


def plan(
    config: RunConfig,
    earlier: Sequence[RunConfig] = (),
    *,
    draw: bool = True,
    report: Report = lambda done, total: None,
    sources: Sources | None = None,
) -> Plan:
    """Plan one stage.

    Args:
        earlier: the stages of the same run before this one, whose output may not be there yet.
        draw: whether rows and tokens are measured from the data, where data and tokenizer are at hand.
        report: told how many batches were drawn, and of how many.

    Raises:
        TagiError: the config contradicts itself, or its shape, checkpoint or data cannot be used.
    """
    method = methods.of(config)
    parts, sources, tokenizer = _resolve(config, earlier), sources or Sources(), None
    if draw and measure.data_at_hand(config):
        tokenizer = measure.tokenizer_at_hand(config, parts.shape, sources)
    with torch.device("meta"):
        model = TagiModel(build(parts.shape), method, parts.hypernetwork, parts.fusion)
    if tokenizer is None:
        found = measure.from_limits(config)
    else:
        found = measure.from_data(config, tokenizer, report, sources, joined=not model.backbone.has_encoder)
    make = _teachers if config.stage == "teachers" else _student
    return make(config, parts, model, found)


def _resolve(config: RunConfig, earlier: Sequence[RunConfig] = ()) -> Model:
    """Shape and parts of a run's model: from its config, from the checkpoint it goes on from, or from the earlier
    stage that will write that checkpoint."""
    if config.backbone is not None:
        return Model(_fresh_shape(config.backbone, config), config.hypernetwork, config.fusion)
    before = next((one for one in earlier if str(Path(one.output) / FINAL) == config.start_from), None)
    if before is None or measure.is_checkpoint(config.start_from):
        folder = Path(str(config.start_from))
        found = checkpoint.read_config(folder)
        first = Model(read_language_model_shape(checkpoint.base_source(folder)), found.hypernetwork, found.fusion)
    else:
        found, first = before, _resolve(before, earlier)
    if config.continues(found.method, found.hypernetwork):
        return first
    return Model(first.shape, config.hypernetwork, config.fusion)


def _fresh_shape(backbone: BackboneConfig, config: RunConfig) -> Shape:
    """The config's shape or the checkpoint's; a micro tokenizer brings its own size."""
    shape = backbone.decoder or backbone.shape
    if shape is None:
        try:
            return read_language_model_shape(str(backbone.path))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; with backbone.shape a dry run works without it") from error
    if backbone.path is None and backbone.tokenizer == "micro":
        return shape.model_copy(update={"vocab_size": len(random_tokenizer(backbone, shape, config.data))})
    return shape


def _student(config: RunConfig, parts: Model, model: TagiModel, found: Measured) -> Plan:
    """Stages whose model is one student."""
    every: tuple[Part, ...] = get_args(Part)
    sizes = {part: sum(map(parameter_count, model.part(part))) for part in every}
    trained: tuple[Part, ...] = tuple(part for part in every if part in config.training.trainable and sizes[part])
    if not trained:
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    work, weights, notes = _work(config, parts, model.method, found.batch, trained), parameter_count(model), []
    share, encoder = sizes["hypernetwork"] / sizes["backbone"], model.instruction_encoder
    if share > LARGE_SHARE:
        size = 0 if encoder is None else parameter_count(encoder)
        own = f", {size:,} of them in an instruction encoder of its own" if size else ""
        notes.append(f"the hypernetwork has {share:.0%} of the backbone's parameters{own}")
    objective = config.objective
    if objective.lambda_kl and objective.teacher is not None and objective.teacher.cache is None:
        work, weights = replace(work, taught=found.prompt), weights + sizes["backbone"]
        if objective.teacher.kind == "fid":
            notes.append("what a FiD teacher reads of demonstrations is not counted")
    made = _plan(config, work, found, sizes, weights, optim.trainable(model, config.training), notes)
    return replace(made, trainable=list(trained), hypernetwork_share=share)


def chunked(config: RunConfig) -> tuple[int | None, int, int]:
    """Per-task LoRAs of stage teachers, if the config says how many; those that train in lock-step; runs of all
    steps."""
    groups = len(config.teachers.only) or GROUPS.get((config.data.source, config.teachers.group))
    chunk = min(config.teachers.parallel, groups or config.teachers.parallel)
    return groups, chunk, -(-groups // chunk) if groups else 1


def _teachers(config: RunConfig, parts: Model, model: TagiModel, found: Measured) -> Plan:
    """Stage teachers: chunks of LoRAs in lock-step, each with a batch of its own, on one frozen language model."""
    groups, chunk, chunks = chunked(config)
    bank = bank_model(model, config.teachers, chunk).bank
    sizes = {"backbone": parameter_count(model.backbone), "teachers": parameter_count(bank)}
    lengths = Lengths(chunk, chunk * found.batch.rows, 0, found.batch.input, found.batch.target)
    work = replace(_work(config, parts, model.method, lengths, ()), bank=config.teachers)
    notes = [f"{groups} teachers in {chunks} chunks of at most {chunk}"]
    if not groups:
        notes = [f"one chunk of {chunk} teachers; how many there are, the data will say"]
    trainable = {"teachers": list(bank.parameters())}
    return _plan(config, work, found, sizes, sum(sizes.values()), trainable, notes, chunk, chunks)


def _work(config: RunConfig, parts: Model, method: Method, lengths: Lengths, trained: tuple[Part, ...]) -> Work:
    """A batch of the run; the rows that tasks have in the mean are rounded up."""
    rows = -(-lengths.rows // lengths.tasks) * lengths.tasks
    return Work(
        **parts._asdict(),
        method=method,
        lengths=replace(lengths, rows=rows),
        trainable=trained,
        dtype=torch.bfloat16 if config.training.precision == "bf16" else torch.float32,
        checkpointing=config.training.activation_checkpointing,
    )


def _plan(
    config: RunConfig,
    work: Work,
    found: Measured,
    sizes: dict[str, int],
    weights: int,
    trainable: Parts,
    notes: list[str],
    groups: int = 1,
    chunks: int = 1,
) -> Plan:
    """The numbers of a run whose batches cost what `work` does.

    Args:
        weights: parameters of all models, a teacher's among them.
        trainable: fp32 parameters by part, as the optimizer is built over them.
        groups: models that train in lock-step, each with a batch of its own.
        chunks: runs of all steps, one after another.
    """
    cost, size, steps = batch_cost(work), work.dtype.itemsize, config.training.steps * chunks
    trained = sum(parameter.numel() for parameters in trainable.values() for parameter in parameters)
    masters = 0 if work.dtype == torch.float32 else torch.float32.itemsize * trained
    state = optimizer_bytes(optim.build(trainable, config.training)) + masters
    memory = size * weights, size * trained, state, cost.activations
    return Plan(
        stage=config.stage,
        method=config.method,
        parameters=sizes,
        trainable=list(trainable),
        hypernetwork_share=0.0,
        steps=steps,
        rows_per_step=found.rows * groups,
        tokens_per_step=found.tokens * groups,
        tokens_are="measured" if found.from_data else "upper bound",
        flops_per_step=cost.flops * config.training.accumulation,
        flops=cost.flops * config.training.accumulation * steps,
        memory=Memory(*memory, sum(memory)),
        notes=notes,
        output=config.output,
    )


def can_be_timed(config: RunConfig, plan: Plan) -> bool:
    """Whether data and weights lie here, and fit twice into the machine's memory."""
    teacher = config.objective.teacher
    folders = [config.bank, teacher.checkpoint if teacher is not None else None]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        config.stage in ("metatrain", "pretrain", "finetune")
        and plan.tokens_are == "measured"
        and (config.start_from is None or measure.is_checkpoint(config.start_from))
        and all(one is None or Path(one).is_dir() for one in folders)
        and 2 * plan.memory.total < memory
    )


def seconds_per_step(config: RunConfig, sources: Sources) -> float:
    """Of forward and backward passes of the run's first batches in one process, without the optimizer."""
    stage = build_stage(config, sources)
    torch.manual_seed(config.training.seed)
    optim.freeze(stage.model, stage.parts)
    if config.training.precision == "bf16":
        stage.model.to(torch.bfloat16)
    stage.model.train()
    each, seconds = config.training.accumulation, list[float]()
    for step in range(1 + TIMED):
        began = time.perf_counter()
        for number in range(step * each, (step + 1) * each):
            terms = stage.loss(stage.model, stage.batch(number))
            torch.stack([stage.weights[name] * term.total for name, term in terms.items()]).sum().backward()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
