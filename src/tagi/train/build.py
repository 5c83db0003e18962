"""From a run's config to a stage that the trainer can run."""

import warnings
from pathlib import Path

from tagi.config import RunConfig
from tagi.data.collate import Collator
from tagi.errors import ConfigError
from tagi.model import checkpoint
from tagi.model.checkpoint import BACKBONE
from tagi.model.hypernetwork import parameter_count
from tagi.model.tagi import TagiModel
from tagi.train import optim
from tagi.train.encodings import encodings
from tagi.train.objective import build_objective
from tagi.train.sources import batches, check_stage
from tagi.train.stage import ModelStage
from tagi.train.start import start

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a warning."""


def build_stage(config: RunConfig) -> ModelStage:
    """Everything that a run's config describes, ready for the trainer.

    Raises:
        TagiError: whatever in the config, the data or the checkpoint does not fit.
    """
    begin = start(config)
    model, tokenizer, settings = begin.model, begin.tokenizer, begin.settings
    method = model.method
    check_stage(config, method)
    _check_parts(config, model)
    objective = build_objective(config, model, tokenizer)
    distils = config.objective.lambda_kl > 0
    collator = Collator(tokenizer, config.prompt, method, prompts=distils, shots=config.objective.shots)
    outside = None if settings.backbone == BACKBONE else settings.backbone

    def write(folder: Path) -> None:
        if objective.cache is not None:
            objective.cache.flush()  # what a checkpoint has seen must be found again when it is resumed
        changed = {} if outside else {"backbone_fingerprint": checkpoint.fingerprint(model.backbone)}
        checkpoint.write(model, settings.model_copy(update=changed), folder)
        tokenizer.save_pretrained(folder)

    def read(folder: Path) -> None:
        model.load_state_dict(checkpoint.load(folder, backbone=outside).model.state_dict())

    parts = optim.trainable(model, config.training)
    terms, encode = objective.terms, encodings(model, config.training)
    return ModelStage(model, parts, batches(config, collator), write, read, terms, encode=encode)


def _check_parts(config: RunConfig, model: TagiModel) -> None:
    """Refuse a run that trains nothing; warn of a generator out of proportion."""
    if not any(model.part(part) for part in config.training.trainable):
        raise ConfigError(f"training.trainable: method {config.method} has none of these parts")
    if model.hypernetwork is not None:
        share = parameter_count(model.hypernetwork) / parameter_count(model.backbone)
        if share > LARGE_SHARE:
            warnings.warn(f"the hypernetwork has {share:.0%} of the backbone's parameters", stacklevel=2)
