"""The one place that knows Hugging Face's names for T5: config keys and tensor names, both ways."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, T5Config

from tagi.config import T5Shape
from tagi.config_files import parse
from tagi.errors import CheckpointError, ConfigError
from tagi.model.backbone import Site
from tagi.model.t5 import T5

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SAME_NAME = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "dropout_rate",
    "layer_norm_epsilon",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
_ATTENTIONS: dict[str, tuple[str, str, str]] = {
    "encoder.self": ("encoder", "attention", "0.SelfAttention"),
    "decoder.self": ("decoder", "attention", "0.SelfAttention"),
    "decoder.cross": ("decoder", "cross", "1.EncDecAttention"),
}
"""The stack of each kind of attention, our name in a block of it, and Hugging Face's."""


def load_t5(source: str | Path) -> T5:
    """A T5 from a Hugging Face folder or hub name, in fp32.

    Raises:
        CheckpointError: not a T5, no safetensors weights, tensors missing or of another shape.
    """
    folder = locate(source)
    config = read_hf_config(folder)
    if config.model_type not in ("t5", "mt5"):
        raise CheckpointError(f"{folder}/config.json: model_type is {config.model_type!r}, not t5 or mt5")
    tensors = _read_weights(folder)
    try:
        model = T5(shape_of(config, tied=_is_tied(tensors)))
    except ConfigError as error:
        raise CheckpointError(f"{folder}/{error}") from error
    _assign(model, tensors, folder)
    return model


def save_t5(model: T5, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {hf: model.get_parameter(ours).detach() for ours, hf in tensor_names(model.shape).items()}
    tensors = {name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(model.shape), indent=2), encoding="utf-8")


def locate(source: str | Path) -> Path:
    """The local folder of a checkpoint: the folder itself, or the hub's snapshot of that name; a `Path` is no name.

    Raises:
        CheckpointError: there is none.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path):
        raise CheckpointError(f"{source}: no such folder")
    try:
        patterns = ["*.safetensors", "*.json", "*.model"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{source}: no such folder, and the hub has no model of that name") from error


def read_shape(source: str) -> T5Shape:
    """The shape that a checkpoint's `config.json` tells, without its weights.

    Raises:
        CheckpointError: no folder or hub model of that name can be reached, or it is no T5.
    """
    config = read_hf_config(Path(source))
    if config.model_type not in ("t5", "mt5"):
        raise CheckpointError(f"{source}/config.json: model_type is {config.model_type!r}, not t5 or mt5")
    return shape_of(config, tied=bool(config.tie_word_embeddings))


def shape_of(config: PretrainedConfig, *, tied: bool) -> T5Shape:
    """Our shape from a Hugging Face config; `tied` is read off the tensors, for v5 configs no longer say.

    Raises:
        ConfigError: a value that no T5 of ours can have.
    """
    values: dict[str, Any] = {name: getattr(config, name, None) for name in _SAME_NAME}
    values["decoder_start_token_id"] = values["decoder_start_token_id"] or 0
    mt5 = config.model_type == "mt5"  # never scales, whatever its config says of tying
    scaled = not mt5 and getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    activation = {"activation": config.dense_act_fn, "gated": config.is_gated_act}
    values |= activation | {"tied": tied, "scale_outputs": scaled}
    return parse(T5Shape, values, source="config.json")


def config_of(shape: T5Shape) -> dict[str, Any]:
    """The `config.json` of a shape; `tie_word_embeddings` is where the family says whether outputs scale."""
    activation = "gelu" if shape.activation == "gelu_new" else shape.activation
    values: dict[str, Any] = {name: getattr(shape, name) for name in _SAME_NAME}
    values |= {
        "feed_forward_proj": f"gated-{activation}" if shape.gated else shape.activation,
        "tie_word_embeddings": shape.scale_outputs,
        "architectures": ["T5ForConditionalGeneration"],
    }
    return T5Config(**values).to_diff_dict() | {"tie_word_embeddings": shape.scale_outputs}


def tensor_names(shape: T5Shape) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, for every tensor of a T5."""
    names = {"embedding.weight": "shared.weight"}
    for stack, layers in (("encoder", shape.num_layers), ("decoder", shape.num_decoder_layers)):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}_position.weight"] = first
        names[f"{stack}_norm.weight"] = f"{stack}.final_layer_norm.weight"
        for i in range(layers):
            names |= _block_names(shape, stack, i)
    return names if shape.tied else names | {"output.weight": "lm_head.weight"}


def module_name(site: Site) -> str:
    """What `transformers` calls the projection of a site."""
    stack, _, attention = _ATTENTIONS[site.kind]
    return f"{stack}.block.{site.layer}.layer.{attention}.{site.place}"


def _block_names(shape: T5Shape, stack: str, layer: int) -> dict[str, str]:
    ours, theirs = f"{stack}.{layer}", f"{stack}.block.{layer}.layer"
    attentions = [names[1:] for names in _ATTENTIONS.values() if names[0] == stack]
    last = len(attentions)
    names = {f"{ours}.feed_forward.norm.weight": f"{theirs}.{last}.layer_norm.weight"}
    for number, (attribute, module) in enumerate(attentions):
        names[f"{ours}.{attribute}.norm.weight"] = f"{theirs}.{number}.layer_norm.weight"
        for matrix in "qkvo":
            names[f"{ours}.{attribute}.{matrix}.weight"] = f"{theirs}.{module}.{matrix}.weight"
    inner = {"wi": "wi_0", "wi_gate": "wi_1", "wo": "wo"} if shape.gated else {"wi": "wi", "wo": "wo"}
    for matrix, name in inner.items():
        names[f"{ours}.feed_forward.{matrix}.weight"] = f"{theirs}.{last}.DenseReluDense.{name}.weight"
    return names


def read_hf_config(folder: Path) -> PretrainedConfig:
    """A folder's `config.json`.

    Raises:
        CheckpointError: missing, or no model's.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder}/config.json: is missing or is no model config") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _shards(folder / INDEX) if (folder / INDEX).exists() else [folder / WEIGHTS]:
        tensors |= read_safetensors(file)
    return tensors


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({index.parent / Path(name).name for name in names})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: is damaged (no weight_map of file names)") from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one file.

    Raises:
        CheckpointError: the file is missing, or cut short, or no safetensors file.
    """
    if not file.exists():
        raise CheckpointError(f"{file}: is missing (weights are read from safetensors only)")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is damaged or half-written ({error})") from error


def check_shape(file: Path, name: str, tensor: Tensor, *expected: int | str) -> None:
    """Refuse a tensor of another shape; a size that may be anything is given as its name.

    Raises:
        CheckpointError: names file, tensor and both shapes.
    """
    found = tuple(tensor.shape)
    fixed = [(size, want) for size, want in zip(found, expected, strict=False) if isinstance(want, int)]
    if len(found) != len(expected) or any(size != want for size, want in fixed):
        wanted = ", ".join(map(str, expected))
        raise CheckpointError(f"{file}: tensor {name} has shape {found}, not ({wanted})")


def check_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor of something else than finite numbers, such as what a training that diverged leaves.

    Raises:
        CheckpointError: names file and tensor.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: tensor {name} has the type {tensor.dtype}, which is none of weights")
    if not tensor.float().isfinite().all():  # as fp32, for that is how it is used
        raise CheckpointError(f"{file}: tensor {name} holds values that are no finite numbers (NaN or infinity)")


def _is_tied(tensors: dict[str, Tensor]) -> bool:
    shared, head = tensors.get("shared.weight"), tensors.get("lm_head.weight")
    return head is None or (shared is not None and torch.equal(shared, head))


def _assign(model: T5, tensors: dict[str, Tensor], folder: Path) -> None:
    with torch.no_grad():
        for ours, theirs in tensor_names(model.shape).items():
            parameter = model.get_parameter(ours)
            if theirs not in tensors:
                raise CheckpointError(f"{folder}: tensor {theirs} is missing")
            check_shape(folder, theirs, tensors[theirs], *parameter.shape)
            parameter.copy_(tensors[theirs])
