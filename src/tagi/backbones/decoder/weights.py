"""The one place that knows what decoder-only families call their tensors in files."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tagi.backbones.decoder.configs import config_of, read_decoder_shape
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.shape import DecoderShape
from tagi.backbones.files import WEIGHTS, check_shape, locate, read_weights
from tagi.errors import CheckpointError

_LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
_OPT = {
    "embedding": "model.decoder.embed_tokens",
    "position": "model.decoder.embed_positions",
    "project_in": "model.decoder.project_in",
    "project_out": "model.decoder.project_out",
    "norm": "model.decoder.final_layer_norm",
    "output": "lm_head",
    "blocks": "model.decoder.layers",
    "attention_norm": "self_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
}
_GPT2 = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "output": "lm_head",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "feed_forward_norm": "ln_2",
    "attention.q": "attn.c_attn",
    "attention.k": "attn.c_attn",
    "attention.v": "attn.c_attn",
    "attention.o": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
NAMES: dict[str, dict[str, str]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "opt": _OPT,
    "gpt2": _GPT2,
}
"""Family -> our module's name -> Hugging Face's; inside a block both are relative to it."""


def load_decoder(source: str | Path, dtype: torch.dtype | None = torch.float32) -> Decoder:
    """A decoder-only model from a Hugging Face folder or hub name; its files are mapped, not copied, where they have
    the type already.

    Args:
        dtype: None keeps that of the files.

    Raises:
        CheckpointError: of another family, no safetensors weights, tensors missing or of another shape.
    """
    folder = locate(source)
    shape = read_decoder_shape(folder)
    return assembled(shape, read_weights(folder), folder, dtype)


def save_decoder(model: Decoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named(model, dtype), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(model.shape), indent=2), encoding="utf-8")


def assembled(
    shape: DecoderShape, tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype | None = torch.float32
) -> Decoder:
    """The model of a shape with Hugging Face's tensors.

    Raises:
        CheckpointError: tensors are missing or of another shape; names `folder` and the tensor.
    """
    with torch.device("meta"):
        model = Decoder(shape)
    found: dict[str, Tensor] = {}
    for theirs, ours in _by_file_name(model).items():
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


def named(model: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors as its family's files have them."""
    tensors: dict[str, Tensor] = {}
    for theirs, ours in _by_file_name(model).items():
        whole = torch.cat([model.get_parameter(name).detach() for name in ours])
        tensors[theirs] = (whole.T if _is_turned(model, ours[0]) else whole).to("cpu", dtype).contiguous()
    return tensors


def file_name(family: str, ours: str) -> str:
    """What a family's files call a parameter of ours."""
    names = NAMES[family]
    module, _, kind = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{names[module]}.{kind}"
    _, layer, inside = module.split(".", 2)
    return f"{names['blocks']}.{layer}.{names[inside]}.{kind}"


def _by_file_name(model: Decoder) -> dict[str, list[str]]:
    """Name in files -> our parameters: several where a family keeps queries, keys and values in one (GPT-2)."""
    found: dict[str, list[str]] = {}
    for ours, _ in model.named_parameters():
        found.setdefault(file_name(model.shape.family, ours), []).append(ours)
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
