"""A language model of any family that this package knows, by what its `config.json` says it is."""

from pathlib import Path

import torch

from tagi.backbones.causal import FAMILIES, CausalLM, load_causal, read_causal_shape, save_causal
from tagi.backbones.files import locate, read_hf_config
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5, read_shape, save_t5
from tagi.config import CausalShape, Shape

LanguageModel = T5 | CausalLM


def load_language_model(source: str | Path) -> LanguageModel:
    """T5, GPT-2 or OPT from a Hugging Face folder or hub name, in fp32.

    Raises:
        CheckpointError: of another family, no safetensors weights, tensors missing or of another shape.
    """
    folder = locate(source)
    return load_causal(folder) if _is_causal(folder) else load_t5(folder)


def save_language_model(model: LanguageModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    if isinstance(model, CausalLM):
        save_causal(model, folder, dtype)
    else:
        save_t5(model, folder, dtype)


def read_language_model_shape(source: str) -> Shape:
    """The shape that a checkpoint's `config.json` tells, without its weights.

    Raises:
        CheckpointError: no folder or hub model of that name can be reached, or of another family.
    """
    folder = Path(source)
    return read_causal_shape(folder) if _is_causal(folder) else read_shape(source)


def build(shape: Shape, seed: int = 0) -> LanguageModel:
    """A language model of a shape, not initialised if it is a T5."""
    return CausalLM.of_shape(shape, seed) if isinstance(shape, CausalShape) else T5(shape)


def as_t5(model: LanguageModel) -> T5:
    """The same model where a method that writes adapters has made sure that it is a T5."""
    assert isinstance(model, T5)
    return model


def _is_causal(folder: Path) -> bool:
    return read_hf_config(folder).model_type in FAMILIES
