"""From a run's config to a stage that the trainer can run."""

import warnings
from pathlib import Path
from typing import cast

from tagi import methods
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.packed import PackedT5
from tagi.config import RunConfig
from tagi.data.collate import Collator
from tagi.errors import ConfigError
from tagi.model.hypernetwork import parameter_count
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.backbone import PackedStage, check_tokenizer, read_text, text_batches, write_about
from tagi.train.datasets import Datasets
from tagi.train.encodings import encodings
from tagi.train.objective import build_objective
from tagi.train.resume import Record
from tagi.train.sources import batches, check_stage, check_taught
from tagi.train.stage import ModelStage, Stage
from tagi.train.start import start
from tagi.train.team import launched

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a warning."""


def build_stage(config: RunConfig, datasets: Datasets | None = None) -> Stage:
    """Everything that a run's config describes, ready for the trainer.

    Args:
        datasets: that others read as well.

    Raises:
        TagiError: whatever in the config, the data or the checkpoint does not fit.
    """
    check_stage(config, methods.get(config.method))
    if config.stage == "backbone":
        return _backbone_stage(config)
    datasets = datasets or Datasets()
    begin = start(config, datasets=datasets)
    model, tokenizer = begin.model, begin.tokenizer
    _check_parts(config, model)
    objective = build_objective(config, model, tokenizer)
    if objective.taught is not None:
        check_taught(config, objective.taught, datasets)
    collator = Collator(
        tokenizer,
        config.prompt,
        model.method,
        joined=not model.backbone.has_encoder,
        prompts=config.objective.lambda_kl > 0,
        shots=config.objective.shots,
    )

    record = Record.of(config, launched(), datasets)

    def write(folder: Path) -> None:
        record.write(folder)
        if objective.cache is not None:
            objective.cache.flush()  # what a checkpoint has seen must be found again when it is resumed
        begin.write(folder)

    parts = optim.trainable(model, config.training)
    terms, encode = objective.terms, encodings(model, config.training)
    drawn = batches(config, collator, launched(), datasets)
    recompute = config.training.gradient_checkpointing
    return ModelStage(model, parts, drawn, write, begin.read, terms, record.check, encode=encode, recompute=recompute)


def _backbone_stage(config: RunConfig) -> PackedStage:
    """Stage `backbone`: plain text, read and written without any instruction."""
    text = read_text(config)
    begin = start(config, text.tokenizer)

    record = Record.of(config, launched())

    def write(folder: Path) -> None:
        record.write(folder)
        begin.write(folder)
        write_about(text.about, folder)

    def read(folder: Path) -> None:
        check_tokenizer(text, folder)
        begin.read(folder)

    parts = optim.trainable(begin.model, config.training)
    model = PackedT5(cast(T5, begin.model.backbone))
    return PackedStage(model, parts, text_batches(config, text, launched()), write, read, record.check)


def _check_parts(config: RunConfig, model: TagiModel) -> None:
    """Refuse a run that trains nothing; warn of a generator out of proportion."""
    if not any(model.part(part) for part in config.training.trainable):
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    if model.hypernetwork is not None:
        share = parameter_count(model.hypernetwork) / parameter_count(model.backbone)
        if share > LARGE_SHARE:
            warnings.warn(f"the hypernetwork has {share:.0%} of the backbone's parameters", stacklevel=2)
