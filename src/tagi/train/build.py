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
from tagi.train.finetune import micro_batches, sni_batches
from tagi.train.pretrain import c4_batches
from tagi.train.stage import ModelStage
from tagi.train.start import start

LARGE_SHARE = 0.25
"""A hypernetwork above this share of the backbone's parameters deserves a warning."""
_BATCHES = {"micro": micro_batches, "sni": sni_batches, "c4": c4_batches}


def build_stage(config: RunConfig) -> ModelStage:
    """Everything that a run's config describes, ready for the trainer.

    Raises:
        TagiError: whatever in the config, the data or the checkpoint does not fit.
    """
    begin = start(config)
    model, tokenizer, settings = begin.model, begin.tokenizer, begin.settings
    _check_stage(config, model)
    method = model.method
    collator = Collator(tokenizer, config.prompt, method.prompt, method.reads_instruction_once)
    outside = None if settings.backbone == BACKBONE else settings.backbone

    def write(folder: Path) -> None:
        changed = {} if outside else {"backbone_fingerprint": checkpoint.fingerprint(model.backbone)}
        checkpoint.write(model, settings.model_copy(update=changed), folder)
        tokenizer.save_pretrained(folder)

    def read(folder: Path) -> None:
        model.load_state_dict(checkpoint.load(folder, backbone=outside).model.state_dict())

    parts = optim.trainable(model, config.training)
    batches = _BATCHES[config.data.source](config, collator)
    return ModelStage(model, parts, batches, write, read, encode=encodings(model, config.training))


def _check_stage(config: RunConfig, model: TagiModel) -> None:
    """Refuse a stage that its method or data cannot be."""
    name, once = config.method, model.method.reads_instruction_once
    if config.stage == "metatrain" and once:
        raise ConfigError(f"stage: metatrain puts the instruction in the prompt, but method {name} does not")
    if config.stage != "metatrain" and not once:
        raise ConfigError(f"stage: {config.stage} trains the parts that read an instruction; {name} has none")
    if (config.stage == "pretrain") != (config.data.source == "c4"):
        raise ConfigError(f"data.source: {config.data.source} does not suit stage {config.stage}")
    if not any(model.part(part) for part in config.training.trainable):
        raise ConfigError(f"training.trainable: method {name} has none of these parts")
    if model.hypernetwork is not None:
        share = parameter_count(model.hypernetwork) / parameter_count(model.backbone)
        if share > LARGE_SHARE:
            warnings.warn(f"the hypernetwork has {share:.0%} of the backbone's parameters", stacklevel=2)
