"""What a run would train, in numbers, without its weights: `tagi train … --dry-run`.

The model is built on torch's meta device from its shape alone, so that an 11B run is planned in seconds on a laptop.
A folder that an earlier stage of the same run will write need not be there yet. Nothing is written or downloaded but
the `config.json` of a hub model whose shape the config leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from tagi import methods
from tagi.backbones.language_model import build, read_language_model_shape
from tagi.config import (
    BackboneConfig,
    FusionConfig,
    HypernetworkConfig,
    Part,
    RunConfig,
    Shape,
    T5Shape,
)
from tagi.data.sources import Sources
from tagi.errors import CheckpointError, ConfigError
from tagi.model import checkpoint, flops
from tagi.model.hypernetwork import parameter_count
from tagi.model.tagi import TagiModel
from tagi.train import measure, memory, optim
from tagi.train.checkpoints import FINAL
from tagi.train.checks import check_stage
from tagi.train.measure import Measured
from tagi.train.memory import Memory
from tagi.train.start import random_tokenizer

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a remark."""
GROUPS = {("sni", "category"): 60, ("sni", "task"): 757, ("p3", "category"): 36}
"""Teacher LoRAs of a whole benchmark (the paper's A.3; Wang et al., 2022), where the config does not name them."""
Report = Callable[[int, int], None]


class Model(NamedTuple):
    """What a run's model is built from."""

    shape: Shape
    hypernetwork: HypernetworkConfig
    fusion: FusionConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """A run in numbers."""

    stage: str
    method: str
    parameters: dict[str, int]
    """By part: backbone, hypernetwork, fusion; of teacher LoRAs, those of one wave."""
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

    def as_json(self) -> dict[str, Any]:
        """Plain values, the memory with its total."""
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}


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
        sources: that others read as well.

    Raises:
        TagiError: the config contradicts itself, or its shape, checkpoint or data cannot be used.
    """
    method = methods.get(config.method)
    check_stage(config, method)
    parts, sources = resolve(config, earlier), sources or Sources()
    tokenizer = (
        measure.tokenizer_at_hand(config, parts.shape, sources) if draw and measure.data_at_hand(config) else None
    )
    found = measure.from_limits(config) if tokenizer is None else measure.from_data(config, tokenizer, report, sources)
    with torch.device("meta"):
        model = TagiModel(build(parts.shape), method, parts.hypernetwork, parts.fusion)
    return (
        _teachers(config, parts, model, found) if config.stage == "teachers" else _student(config, parts, model, found)
    )


def resolve(config: RunConfig, earlier: Sequence[RunConfig] = ()) -> Model:
    """Shape and parts of a run's model: from its config, from the checkpoint it goes on from, or from the earlier
    stage that will write that checkpoint.

    Raises:
        CheckpointError: neither says.
    """
    if config.backbone is not None:
        return Model(_fresh_shape(config, config.backbone), config.hypernetwork, config.fusion)
    before = next((one for one in earlier if str(Path(one.output) / FINAL) == config.start_from), None)
    if before is None or measure.is_checkpoint(config.start_from):
        return _resolve_folder(config, Path(str(config.start_from)))
    first = resolve(before, earlier)
    return first if before.method == config.method else Model(first.shape, config.hypernetwork, config.fusion)


def _resolve_folder(config: RunConfig, folder: Path) -> Model:
    found = checkpoint.read_config(folder)
    shape = read_language_model_shape(checkpoint.base_source(folder))
    same = found.method == config.method
    return Model(shape, *((found.hypernetwork, found.fusion) if same else (config.hypernetwork, config.fusion)))


def _fresh_shape(config: RunConfig, backbone: BackboneConfig) -> Shape:
    """The config's shape or the checkpoint's; a micro tokenizer brings its own size."""
    shape = backbone.decoder or backbone.shape or _shape_at(str(backbone.path))
    if backbone.path is None and backbone.tokenizer == "micro":
        return shape.model_copy(update={"vocab_size": len(random_tokenizer(backbone, shape, config.data))})
    return shape


def _shape_at(path: str) -> Shape:
    try:
        return read_language_model_shape(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; with backbone.shape a dry run works without it") from error


def _student(config: RunConfig, parts: Model, model: TagiModel, found: Measured) -> Plan:
    """Stages whose model is one student."""
    sizes = {part: sum(map(parameter_count, model.part(part))) for part in get_args(Part)}
    trained: set[Part] = {part for part in config.training.trainable if sizes[part]}
    if not trained:
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    passes = flops.forward(parts.shape, model.method, parts.hypernetwork, parts.fusion, found.batch)
    encoder = 0 if model.instruction_encoder is None else parameter_count(model.instruction_encoder)
    once = flops.training(passes, trained, separate_encoder=encoder > 0) + _teacher_flops(config, parts.shape, found)
    if config.training.gradient_checkpointing:
        once += flops.recomputed(passes)
    kept = _kept(config, parts, model, trained, found)
    tensors = optim.trainable(model, config.training)
    weights = parameter_count(model) + (sizes["backbone"] if _online(config) else 0)
    share = sizes["hypernetwork"] / sizes["backbone"]
    return Plan(
        stage=config.stage,
        method=config.method,
        parameters=sizes,
        trainable=[part for part in sizes if part in trained],
        hypernetwork_share=share,
        steps=config.training.steps,
        rows_per_step=found.rows,
        tokens_per_step=found.tokens,
        tokens_are="measured" if found.from_data else "upper bound",
        flops_per_step=once * config.training.accumulation,
        flops=once * config.training.accumulation * config.training.steps,
        memory=_memory(config, weights, tensors, kept),
        notes=_notes(config, share, encoder),
        output=config.output,
    )


def _kept(config: RunConfig, parts: Model, model: TagiModel, trained: set[Part], found: Measured) -> int:
    """Bytes of the student's activations."""
    assert isinstance(parts.shape, T5Shape)
    generator, fused = parts.hypernetwork, parts.fusion
    own = model.instruction_encoder is not None
    return memory.activations(
        parts.shape, model.method, generator, fused, config.training, trained, found.batch, own_encoder=own
    )


def _notes(config: RunConfig, share: float, encoder: int) -> list[str]:
    own = f", {encoder:,} of them in an instruction encoder of its own" if encoder else ""
    notes = [f"the hypernetwork has {share:.0%} of the backbone's parameters{own}"] if share > LARGE_SHARE else []
    teacher = config.objective.teacher
    if _online(config) and teacher is not None and teacher.kind == "fid":
        notes.append("what a FiD teacher reads of demonstrations is not counted")
    return notes


def _teachers(config: RunConfig, parts: Model, model: TagiModel, found: Measured) -> Plan:
    """Stage teachers: waves of LoRAs in lock-step, each with a batch of its own, on one frozen language model."""
    bank, shape = config.teachers, parts.shape
    assert isinstance(shape, T5Shape)
    groups = len(bank.only) or GROUPS.get((config.data.source, bank.group))
    wave = min(bank.wave, groups or bank.wave)
    waves = -(-groups // wave) if groups else 1
    one = sum(bank.rank * sum(model.backbone.site_shape(site)) for site in model.backbone.sites())
    batch = flops.Lengths(wave, wave * found.batch.rows, 0, found.batch.input, found.batch.target)
    passes = flops.forward(shape, model.method, parts.hypernetwork, parts.fusion, batch)
    worn = flops.worn_lora(shape, bank.rank, batch, memory=False)
    once = flops.training(passes, set()) + worn.forward + worn.backward(trained=False)
    if config.training.gradient_checkpointing:
        once += flops.recomputed(passes) + worn.forward
    kept = memory.activations(
        shape, model.method, parts.hypernetwork, parts.fusion, config.training, set(), batch, rank=bank.rank
    )
    with torch.device("meta"):
        tensors = {"teachers": [nn.Parameter(torch.empty(wave, one // bank.rank, bank.rank))]}
    many = f"{groups} teachers in {waves} waves of at most {wave}" if groups else f"one wave of {wave} teachers"
    return Plan(
        stage=config.stage,
        method=config.method,
        parameters={"backbone": parameter_count(model.backbone), "teachers": wave * one},
        trainable=["teachers"],
        hypernetwork_share=0.0,
        steps=config.training.steps * waves,
        rows_per_step=found.rows * wave,
        tokens_per_step=found.tokens * wave,
        tokens_are="measured" if found.from_data else "upper bound",
        flops_per_step=once * config.training.accumulation,
        flops=once * config.training.accumulation * config.training.steps * waves,
        memory=_memory(config, parameter_count(model.backbone) + wave * one, tensors, kept),
        notes=[many if groups else f"{many}; how many there are, the data will say"],
        output=config.output,
    )


def _online(config: RunConfig) -> bool:
    """Whether a teacher's own weights compute logits in every step."""
    objective = config.objective
    return bool(objective.lambda_kl and objective.teacher is not None and objective.teacher.cache is None)


def _teacher_flops(config: RunConfig, shape: Shape, found: Measured) -> float:
    """An online teacher's forward pass on the same rows, instruction and input in one text; taken to be of the
    student's own shape."""
    if not _online(config):
        return 0.0
    read = flops.Lengths(found.batch.tasks, found.batch.rows, 0, found.prompt, found.batch.target)
    return flops.forward(shape, methods.get("metatrain"), config.hypernetwork, config.fusion, read).total


def _memory(config: RunConfig, weights: int, trained: Mapping[str, Sequence[nn.Parameter]], kept: int) -> Memory:
    size = memory.value_bytes(config.training)
    gradients = size * sum(parameter.numel() for parameters in trained.values() for parameter in parameters)
    state = memory.optimizer_bytes(trained, config.training)
    return Memory(size * weights, gradients, state, kept)
