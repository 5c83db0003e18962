"""From a run's config to a stage that the trainer can run."""

from collections.abc import Callable, Set
from pathlib import Path

import torch
from torch import Tensor

from tagi import methods
from tagi.config import RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.sources import Sources
from tagi.errors import ConfigError
from tagi.model.states import StateGenerator
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.batches import batches
from tagi.train.distributed.team import launched
from tagi.train.encodings import encodings
from tagi.train.objectives.objective import build_objective
from tagi.train.resume import Record
from tagi.train.stage import ModelStage
from tagi.train.start import start

OBSERVED = 16
"""Batches whose instructions give the mean and deviation of states."""


def build_stage(config: RunConfig, sources: Sources | None = None) -> ModelStage:
    """Everything that a run's config describes, ready for the trainer; a `TagiError` says what does not fit."""
    methods.of(config)
    sources = sources or Sources()
    begin = start(config, sources=sources)
    model, tokenizer = begin.model, begin.tokenizer
    if not any(model.part(part) for part in config.training.trainable):
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    objective = build_objective(config, model, tokenizer)
    if objective.taught is not None:
        _check_taught(config, objective.taught, sources)
    distils, joined = config.objective.lambda_kl > 0, not model.backbone.has_encoder
    collator = Collator(tokenizer, config.prompt, model.method, joined, distils=distils, shots=config.objective.shots)
    record = Record.of(config, launched(), sources)
    batch, encode = batches(config, collator, launched(), sources), encodings(model, config.training)
    if begin.fresh and isinstance(model.hypernetwork, StateGenerator):
        _observe(model, model.hypernetwork, batch)

    def write(folder: Path) -> None:
        record.write(folder)
        if objective.cache is not None:
            objective.cache.flush()  # what a checkpoint has seen must be found again when it is resumed
        begin.write(folder)

    return ModelStage(
        model,
        optim.trainable(model, config.training),
        batch,
        write,
        begin.read,
        record.check,
        terms=objective.terms,
        encode=encode,
        checkpointing=config.training.activation_checkpointing,
    )


@torch.no_grad()
def _observe(model: TagiModel, generator: StateGenerator, batch: Callable[[int], Batch]) -> None:
    """Take the mean and deviation of states from the instructions of the first batches."""
    found: list[Tensor] = []
    for number in range(OBSERVED):
        one = batch(number)
        read = model.read(one.instruction_ids, one.instruction_mask)
        if read.states is not None:
            found.append(read.states[read.mask])
    if found:
        generator.observe(torch.cat(found))


def _check_taught(config: RunConfig, taught: Set[str], sources: Sources) -> None:
    """Refuse a bank that has no LoRA for any training task: every term that reads it would be 0 without a word."""
    if config.stage == "pretrain":
        raise ConfigError("objective.lambda_ins: plain text has no tasks that a bank could have LoRAs for")
    each = sources.train(config.data, config.demonstrations, config.training.seed).sources
    if not any(one.task(number, 0).name in taught for one in each for number in range(len(one))):
        raise ConfigError(f"bank: {config.bank} has no LoRA for any of this run's training tasks")
