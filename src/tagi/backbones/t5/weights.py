"""The one place that knows Hugging Face's names for T5: config keys and tensor names, both ways."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from tagi.backbones.files import WEIGHTS, check_shape, check_type, locate, read_hf_config, read_weights
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.names import ATTENTIONS
from tagi.config import T5Shape
from tagi.config.files import parse
from tagi.errors import CheckpointError, ConfigError

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
)
_SHARED = "shared.weight"
_ITS_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


def load_t5(source: str | Path) -> T5:
    """A T5 from a Hugging Face folder or hub name, in fp32.

    What `transformers` reads is read as it does: a single file before the shards of an index, shards in folders below,
    the embedding by any of its names.

    Raises:
        CheckpointError: not a T5, no safetensors weights, tensors missing, of another shape, or not finite.
    """
    folder = locate(source)
    config = _config(folder)
    tensors = _with_shared(read_weights(folder), folder)
    model = T5(_shape(config, folder, tied=_is_tied(tensors)))
    with torch.no_grad():
        for ours, theirs in tensor_names(model.shape).items():
            parameter = model.get_parameter(ours)
            if theirs not in tensors:
                raise CheckpointError(f"{folder}: tensor {theirs} is missing")
            check_shape(folder, theirs, tensors[theirs], *parameter.shape)
            check_type(folder, theirs, tensors[theirs])
            parameter.copy_(tensors[theirs])
    return model


def save_t5(model: T5, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors so that `transformers` opens the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {hf: model.get_parameter(ours).detach() for ours, hf in tensor_names(model.shape).items()}
    tensors = {name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(model.shape), indent=2), encoding="utf-8")


def read_shape(folder: Path) -> T5Shape:
    """The shape that a checkpoint's `config.json` tells, without its weights.

    Raises:
        CheckpointError: no folder or hub model of that name can be reached, or it is no T5.
    """
    config = _config(folder)
    return _shape(config, folder, tied=bool(config.tie_word_embeddings))


def _config(folder: Path) -> PretrainedConfig:
    config = read_hf_config(folder)
    if config.model_type not in ("t5", "mt5"):
        raise CheckpointError(f"{folder}/config.json: model_type is {config.model_type!r}, not t5 or mt5")
    return config


def _shape(config: PretrainedConfig, folder: Path, *, tied: bool) -> T5Shape:
    try:
        return shape_of(config, tied=tied)
    except ConfigError as error:
        raise CheckpointError(f"{folder}/{error}") from error


def shape_of(config: PretrainedConfig, *, tied: bool) -> T5Shape:
    """Our shape from a Hugging Face config; `tied` is read off the tensors, for v5 configs no longer say.

    Raises:
        ConfigError: a value that no T5 of ours can have.
    """
    values: dict[str, Any] = {name: getattr(config, name, None) for name in _SAME_NAME}
    values |= _ids(config)
    mt5 = config.model_type == "mt5"  # never scales, whatever its config says of tying
    scaled = not mt5 and getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    activation = {"activation": config.dense_act_fn, "gated": config.is_gated_act}
    values |= activation | {"tied": tied, "scale_outputs": scaled}
    return parse(T5Shape, values, source="config.json")


def _ids(config: PretrainedConfig) -> dict[str, Any]:
    """The special tokens of a config: one that is absent or null is what `transformers` takes in its place.

    Raises:
        ConfigError: one that cannot be replaced, or is no token of the vocabulary.
    """
    ends, pad = getattr(config, "eos_token_id", None), getattr(config, "pad_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    if not ends or None in ends:
        raise ConfigError("config.json: eos_token_id: is missing, so that no answer would ever end")
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and pad is None:
        raise ConfigError(
            "config.json: decoder_start_token_id: is missing, and so is pad_token_id, which T5 begins with"
        )
    start, pad = pad if start is None else start, ends[0] if pad is None else pad
    named = [("decoder_start_token_id", start), ("pad_token_id", pad), *(("eos_token_id", one) for one in ends)]
    for name, number in named:
        if type(number) is not int or not 0 <= number < config.vocab_size:
            raise ConfigError(f"config.json: {name}: {number!r} is none of the {config.vocab_size} ids from 0")
    return {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_ids": tuple(ends)}


def config_of(shape: T5Shape) -> dict[str, Any]:
    """The `config.json` of a shape; `tie_word_embeddings` is where the family says whether outputs scale."""
    from transformers import T5Config

    activation = "gelu" if shape.activation == "gelu_new" else shape.activation
    values: dict[str, Any] = {name: getattr(shape, name) for name in _SAME_NAME}
    ends = list(shape.eos_token_ids)
    values |= {
        "pad_token_id": shape.pad_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "decoder_start_token_id": shape.decoder_start_token_id,
        "feed_forward_proj": f"gated-{activation}" if shape.gated else shape.activation,
        "tie_word_embeddings": shape.scale_outputs,
        "architectures": ["T5ForConditionalGeneration"],
    }
    return T5Config(**values).to_diff_dict() | {"tie_word_embeddings": shape.scale_outputs}


def tensor_names(shape: T5Shape) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, for every tensor of a T5."""
    names = {"embedding.weight": _SHARED}
    for stack, layers in (("encoder", shape.num_layers), ("decoder", shape.num_decoder_layers)):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}_position.weight"] = first
        names[f"{stack}_norm.weight"] = f"{stack}.final_layer_norm.weight"
        for i in range(layers):
            names |= _block_names(shape, stack, i)
    return names if shape.tied else names | {"output.weight": _HEAD}


def _block_names(shape: T5Shape, stack: str, layer: int) -> dict[str, str]:
    ours, theirs = f"{stack}.{layer}", f"{stack}.block.{layer}.layer"
    attentions = [names[1:] for names in ATTENTIONS.values() if names[0] == stack]
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


def _with_shared(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The embedding under its own name: files have it under any of four, and `transformers` takes them in this order.

    Raises:
        CheckpointError: encoder and decoder embed tokens apart, as no T5 of ours does.
    """
    found = [name for name in (_SHARED, *_ITS_COPIES, _HEAD) if name in tensors]
    for copy in (name for name in found[1:] if name in _ITS_COPIES):
        if not _same(tensors[found[0]], tensors[copy]):
            raise CheckpointError(
                f"{folder}: tensors {found[0]} and {copy} differ; a T5 here has one embedding for both"
            )
    return tensors | {_SHARED: tensors[found[0]]} if found else tensors


def _is_tied(tensors: dict[str, Tensor]) -> bool:
    shared, head = tensors.get(_SHARED), tensors.get(_HEAD)
    return head is None or (shared is not None and _same(shared, head))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())
