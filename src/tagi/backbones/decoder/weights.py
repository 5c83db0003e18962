"""Decoder-only models from and to Hugging Face folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tagi.backbones.decoder.configs import config_of, read_decoder_shape
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.names import NAMES
from tagi.backbones.files import WEIGHTS, check_shape, locate, read_weights
from tagi.config import DecoderShape
from tagi.errors import CheckpointError


def load_decoder(
    source: str | Path, dtype: torch.dtype | None = torch.float32, shape: DecoderShape | None = None
) -> Decoder:
    """A decoder-only model from a Hugging Face folder or hub name; its files are mapped, not copied, where they have
    the type already.

    Args:
        dtype: None keeps that of the files.
        shape: where it is known; else `config.json` tells.

    Raises:
        CheckpointError: of another family, no safetensors weights, tensors missing or of another shape.
    """
    folder = locate(source)
    with torch.device("meta"):
        model = Decoder(shape or read_decoder_shape(folder))
    tensors, found = read_weights(folder), dict[str, Tensor]()
    for theirs, ours in by_file_name(model).items():
        sizes = [model.get_parameter(name).shape for name in ours]
        turned = _is_turned(model, ours[0])
        whole = (sum(size[0] for size in sizes), *sizes[0][1:])
        tensor = _get(tensors, theirs, folder)
        check_shape(folder, theirs, tensor, *(reversed(whole) if turned else whole))
        parts = (tensor.T if turned else tensor).split([size[0] for size in sizes])
        for name, part in zip(ours, parts, strict=True):
            found[name] = part.to(dtype or part.dtype).contiguous()
    model.load_state_dict(found, assign=True)
    return model


def save_decoder(model: Decoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named(model, dtype), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(model.shape), indent=2), encoding="utf-8")


def named(model: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors as its family's files have them."""
    tensors: dict[str, Tensor] = {}
    for theirs, ours in by_file_name(model).items():
        whole = torch.cat([model.get_parameter(name).detach() for name in ours])
        tensors[theirs] = (whole.T if _is_turned(model, ours[0]) else whole).to("cpu", dtype).contiguous()
    return tensors


def by_file_name(model: Decoder) -> dict[str, list[str]]:
    """Name in files -> our parameters: several where a family keeps queries, keys and values in one (GPT-2)."""
    names, found = NAMES[model.shape.family], dict[str, list[str]]()
    for ours, _ in model.named_parameters():
        module, _, kind = ours.rpartition(".")
        if module.startswith("blocks."):
            _, layer, inside = module.split(".", 2)
            theirs = f"{names['blocks']}.{layer}.{names[inside]}.{kind}"
        else:
            theirs = f"{names[module]}.{kind}"
        found.setdefault(theirs, []).append(ours)
    return found


def _is_turned(model: Decoder, ours: str) -> bool:
    """Whether files hold a parameter transposed, (in, out), as GPT-2's do all matrices of its blocks."""
    inside = isinstance(model.get_submodule(ours.rpartition(".")[0]), nn.Linear) and ours.startswith("blocks.")
    return model.shape.family == "gpt2" and inside and ours.endswith(".weight")


def _get(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    """A tensor by its name, or without the first part of it, as files of the model without its head call it."""
    bare = name.partition(".")[2]
    if name not in tensors and bare not in tensors:
        raise CheckpointError(f"{folder}: tensor {name} is missing")
    return tensors[name] if name in tensors else tensors[bare]
