"""From a run's config to a stage that the trainer can run."""

import warnings
from pathlib import Path

from tagi import methods
from tagi.config import RunConfig
from tagi.data.collate import Collator
from tagi.data.sources import Sources
from tagi.errors import ConfigError
from tagi.model.hypernetwork import parameter_count
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.batches import batches
from tagi.train.checks import check_stage, check_taught
from tagi.train.distributed.team import launched
from tagi.train.encodings import encodings
from tagi.train.objectives.objective import build_objective
from tagi.train.resume import Record
from tagi.train.stage import ModelStage
from tagi.train.start import start

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a warning."""


def build_stage(config: RunConfig, sources: Sources | None = None) -> ModelStage:
    """Everything that a run's config describes, ready for the trainer.

    Args:
        sources: that others read as well.

    Raises:
        TagiError: whatever in the config, the data or the checkpoint does not fit.
    """
    check_stage(config, methods.get(config.method))
    sources = sources or Sources()
    begin = start(config, sources=sources)
    model, tokenizer = begin.model, begin.tokenizer
    _check_parts(config, model)
    objective = build_objective(config, model, tokenizer)
    if objective.taught is not None:
        check_taught(config, objective.taught, sources)
    distils = config.objective.lambda_kl > 0
    joined, shots = not model.backbone.has_encoder, config.objective.shots
    collator = Collator(tokenizer, config.prompt, model.method, joined, distils=distils, shots=shots)

    record = Record.of(config, launched(), sources)

    def write(folder: Path) -> None:
        record.write(folder)
        if objective.cache is not None:
            objective.cache.flush()  # what a checkpoint has seen must be found again when it is resumed
        begin.write(folder)

    parts = optim.trainable(model, config.training)
    terms, encode = objective.terms, encodings(model, config.training)
    drawn = batches(config, collator, launched(), sources)
    checkpointing = config.training.activation_checkpointing
    return ModelStage(
        model, parts, drawn, write, begin.read, terms, record.check, encode=encode, checkpointing=checkpointing
    )


def _check_parts(config: RunConfig, model: TagiModel) -> None:
    """Refuse a run that trains nothing; warn of a generator out of proportion."""
    if not any(model.part(part) for part in config.training.trainable):
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    if model.hypernetwork is not None:
        share = parameter_count(model.hypernetwork) / parameter_count(model.backbone)
        if share > LARGE_SHARE:
            warnings.warn(f"the hypernetwork has {share:.0%} of the backbone's parameters", stacklevel=2)
