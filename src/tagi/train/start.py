"""The model, tokenizer and settings that a run starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tagi import methods
from tagi.backbones.language_model import LanguageModel, build, find_language_model, load_language_model
from tagi.backbones.language_model import initialise as initialise_backbone
from tagi.config import BackboneConfig, DataConfig, RunConfig, Shape, T5Shape
from tagi.data import tokenizers
from tagi.data.sources import Sources
from tagi.data.synthetic import microtasks
from tagi.errors import ConfigError
from tagi.model import bank as banks
from tagi.model import checkpoint
from tagi.model.checkpoint import BACKBONE, ModelConfig
from tagi.model.states import StateGenerator
from tagi.model.tagi import TagiModel
from tagi.model.tagi import initialise as initialise_parts
from tagi.train.checkpoints import load_tensors, newest

_CHECKPOINTS_OWN = ("dropout_rate", "layer_norm_epsilon", "vocab_size")
"""What checkpoints of one published shape differ in; of `vocab_size` they differ in rows of the embedding that no token
has: T5-LM has 28 of them, Tk-Instruct is saved without. Rows that tokens have are checked against the tokenizer."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins with."""

    model: TagiModel
    tokenizer: PreTrainedTokenizerBase
    settings: ModelConfig
    fresh: bool = True
    """Whether the parts beside the backbone begin here."""

    def write(self, folder: Path) -> None:
        """The files of a checkpoint of the model as it is now, into a folder that exists."""
        checkpoint.write(self.model, self.settings, folder)
        tokenizers.save(self.tokenizer, folder)

    def read(self, folder: Path) -> None:
        """Put a checkpoint's tensors into the model."""
        outside = None if self.settings.backbone == BACKBONE else self.settings.backbone  # held by reference
        load_tensors(self.model, checkpoint.load(folder, backbone=outside).model.state_dict(), folder)


def start(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None = None, sources: Sources | None = None) -> Start:
    """A fresh model on the config's backbone, with a tokenizer if one is made already, or an earlier stage's model."""
    generator, shared = torch.Generator().manual_seed(config.training.seed), {}
    if config.start_from is not None:
        folder = Path(config.start_from)
        loaded = checkpoint.load(folder)
        backbone, found = loaded.model.backbone, tokenizers.load(folder, loaded.model.backbone.shape)
        inside = loaded.config.backbone == BACKBONE
        reference = str((folder / BACKBONE).resolve()) if inside else loaded.config.backbone
        if config.continues(loaded.config.method, loaded.config.hypernetwork):
            kept = {"hypernetwork": loaded.config.hypernetwork, "fusion": loaded.config.fusion}
            settings = _settings(config.model_copy(update=kept), loaded.model, reference)
            return Start(loaded.model, found, settings, fresh=False)
        if loaded.model.hypernetwork is not None:
            shared = loaded.model.hypernetwork.shared
    else:  # another method keeps an earlier stage's backbone and begins the other parts anew, as this does
        assert config.backbone is not None
        backbone, found = _backbone(config, config.backbone, generator, tokenizer, sources)
        reference = config.backbone.path
    prompt, most = config.prompt, backbone.max_positions
    longest = prompt.longest_prompt + prompt.max_target
    if most is not None and longest > most:
        asked = "max_instruction + max_input" if prompt.max_prompt is None else "max_prompt"
        raise ConfigError(f"prompt: {asked} + max_target is {longest}, but the language model has {most} positions")
    model = TagiModel(backbone, methods.get(config.method), config.hypernetwork, config.fusion)
    initialise_parts(model, generator)
    if isinstance(model.hypernetwork, StateGenerator):
        model.hypernetwork.share(shared)
    if config.bank is not None and model.hypernetwork is not None:
        model.hypernetwork.start_from(banks.load(Path(config.bank), backbone).a0)
    return Start(model, found, _settings(config, model, reference))


def _backbone(
    run: RunConfig,
    config: BackboneConfig,
    generator: torch.Generator,
    tokenizer: PreTrainedTokenizerBase | None,
    sources: Sources | None,
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    if config.path is not None:
        folder = find_language_model(config.path)
        backbone = load_language_model(folder)
        if config.shape is not None:
            check_shape(backbone.shape, config.shape, config.path)
        return backbone, tokenizers.load(folder, backbone.shape)
    shape, kept = config.decoder or config.shape, newest(Path(run.output))
    assert shape is not None
    if tokenizer is None and config.tokenizer == "unigram" and kept is not None:
        tokenizer = tokenizers.load(kept)  # trained again on the same text it might be another, see tokenizers.unigram
    tokenizer = tokenizer or random_tokenizer(config, shape, run.data, sources)
    update: dict[str, Any] = {"vocab_size": len(tokenizer)}
    if not shape.eos_token_ids and tokenizer.eos_token_id is not None:
        update["eos_token_ids"] = (tokenizer.eos_token_id,)  # a decoder-only model's answers end as its texts do
    backbone = build(shape.model_copy(update=update))
    initialise_backbone(backbone, generator)
    return backbone, tokenizer


def check_shape(found: Shape, expected: T5Shape, path: str) -> None:
    """Refuse weights of another shape than the config expects; some fields are the checkpoint's to say."""
    for field in T5Shape.model_fields:
        ours, theirs = getattr(expected, field), getattr(found, field, None)
        if ours != theirs and field not in _CHECKPOINTS_OWN:
            raise ConfigError(f"backbone.shape.{field}: is {ours}, but the checkpoint {path} has {theirs}")


def random_tokenizer(
    config: BackboneConfig, shape: Shape, data: DataConfig, sources: Sources | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that is built with a backbone from random initialisation."""
    if config.tokenizer == "micro":
        return tokenizers.word_level(microtasks.micro_vocabulary())
    if config.tokenizer != "unigram":
        return tokenizers.load(Path(str(config.tokenizer)))
    return tokenizers.unigram((sources or Sources()).texts(data), shape.vocab_size)


def _settings(config: RunConfig, model: TagiModel, reference: str | None) -> ModelConfig:
    """`tagi.json` of this run; a backbone that is trained along, or has no other home, is saved inside."""
    inside = reference is None or "backbone" in config.training.trainable
    return ModelConfig(
        method=config.method,
        hypernetwork=config.hypernetwork,
        fusion=config.fusion,
        prompt=config.prompt,
        backbone=BACKBONE if inside else str(reference),
        backbone_fingerprint=checkpoint.fingerprint(model.backbone),
    )
