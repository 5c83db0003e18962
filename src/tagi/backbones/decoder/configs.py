"""The `config.json` of decoder-only families, both ways."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tagi.backbones.files import read_hf_config
from tagi.config import DecoderShape
from tagi.config.files import parse
from tagi.errors import CheckpointError, ConfigError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"} | dict.fromkeys(
    ("gelu_new", "gelu_pytorch_tanh"), "gelu_new"
)


def read_decoder_shape(folder: Path) -> DecoderShape:
    """The shape that a folder's `config.json` tells.

    Raises:
        CheckpointError: another family, or what none of these models has; names the field.
    """
    try:
        return shape_of(read_hf_config(folder))
    except ConfigError as error:
        raise CheckpointError(f"{folder}/{error}") from error


def shape_of(config: PretrainedConfig) -> DecoderShape:
    """Our shape from a Hugging Face config.

    Raises:
        ConfigError: another family, or what none of these models has; names the field.
    """
    family = config.model_type
    if family not in ARCHITECTURES:
        raise ConfigError(f"config.json: model_type: {family!r} is none of {', '.join(ARCHITECTURES)}")
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None and width % heads:
        raise ConfigError(f"config.json: num_attention_heads: {heads} heads do not divide a width of {width}")
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [end for end in ends if end is not None]
    values = {
        "family": family,
        "vocab_size": config.vocab_size,
        "d_model": width,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": head_dim or width // heads,
        "max_positions": config.max_position_embeddings,
        "tied": bool(config.tie_word_embeddings),
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": tuple(ends),
        "pad_token_id": (ends or [0])[0] if config.pad_token_id is None else config.pad_token_id,
    }
    own = {"gpt2": _of_gpt2, "opt": _of_opt}.get(family, _of_llama)(config)
    return parse(DecoderShape, values | own, source="config.json")


def config_of(shape: DecoderShape) -> dict[str, Any]:
    """The `config.json` of a shape."""
    values = {
        "architectures": [ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": list(shape.eos_token_ids) if len(shape.eos_token_ids) > 1 else (*shape.eos_token_ids, None)[0],
        "pad_token_id": shape.pad_token_id,
    }
    return values | {"gpt2": _to_gpt2, "opt": _to_opt}.get(shape.family, _to_llama)(shape)


def _of_llama(config: PretrainedConfig) -> dict[str, Any]:
    family, layers = config.model_type, config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    windowed = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention" and window is not None]
    bias = bool(getattr(config, "attention_bias", False))
    return {
        "d_ff": config.intermediate_size,
        "norm_eps": config.rms_norm_eps,
        "rotary": _rotary(config.rope_parameters),
        "activation": _activation("hidden_act", config.hidden_act),
        "qkv_bias": bias or family == "qwen2",
        "o_bias": bias,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "qk_norm": family == "qwen3",
        "window": window if windowed else None,
        "window_layers": tuple(windowed),
    }


def _to_llama(shape: DecoderShape) -> dict[str, Any]:
    values: dict[str, Any] = {
        "intermediate_size": shape.d_ff,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": shape.activation,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": _rope_parameters(shape),
        "sliding_window": shape.window,
    }
    if shape.family == "llama":
        values |= {"attention_bias": shape.o_bias, "mlp_bias": shape.mlp_bias}
    if shape.family == "qwen3":
        values["attention_bias"] = shape.o_bias
    if shape.family.startswith("qwen"):
        windowed = [
            "sliding_attention" if layer in shape.window_layers else "full_attention"
            for layer in range(shape.num_layers)
        ]
        values |= {"use_sliding_window": shape.window is not None, "layer_types": windowed}
    return values


def _rotary(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"config.json: rope_parameters: rope_type {kind!r} is none of default, linear, llama3")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("config.json: rope_parameters: partial_rotary_factor is something else than 1")
    scaling = "none" if kind == "default" else kind
    return {"scaling": scaling} | {ours: rope[theirs] for ours, theirs in _rope_names(scaling).items()}


def _rope_parameters(shape: DecoderShape) -> dict[str, Any]:
    rotary = shape.rotary
    assert rotary is not None
    values = {theirs: getattr(rotary, ours) for ours, theirs in _rope_names(rotary.scaling).items()}
    return {"rope_type": "default" if rotary.scaling == "none" else rotary.scaling} | values


def _rope_names(scaling: str) -> dict[str, str]:
    """Our name -> Hugging Face's, of what rotary positions of that scaling have."""
    names = {"theta": "rope_theta"}
    if scaling != "none":
        names["factor"] = "factor"
    if scaling == "llama3":
        names |= {"low_frequency": "low_freq_factor", "high_frequency": "high_freq_factor"}
        names["original_positions"] = "original_max_position_embeddings"
    return names


def _of_gpt2(config: PretrainedConfig) -> dict[str, Any]:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ConfigError("config.json: scale_attn_weights: scores are scaled by the width of a head and nothing else")
    if config.add_cross_attention:
        raise ConfigError("config.json: add_cross_attention: a decoder-only model has none")
    return {
        "d_ff": config.n_inner or 4 * config.n_embd,
        "norm_eps": config.layer_norm_epsilon,
        "learned": {},
        **_of_layer_normed(config, bias=True),
    }


def _to_gpt2(shape: DecoderShape) -> dict[str, Any]:
    return {
        "n_inner": shape.d_ff,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": shape.activation,
    } | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def _of_opt(config: PretrainedConfig) -> dict[str, Any]:
    if not config.layer_norm_elementwise_affine:
        raise ConfigError("config.json: layer_norm_elementwise_affine: norms without weights are not known here")
    if config.do_layer_norm_before and config._remove_final_layer_norm:
        raise ConfigError("config.json: _remove_final_layer_norm: a model without its last norm is not known here")
    return {
        "d_ff": config.ffn_dim,
        "norm_first": bool(config.do_layer_norm_before),
        "learned": {"offset": 2},
        "d_embedding": None if config.word_embed_proj_dim == config.hidden_size else config.word_embed_proj_dim,
        **_of_layer_normed(config, bias=bool(config.enable_bias)),
    }


def _to_opt(shape: DecoderShape) -> dict[str, Any]:
    return {
        "ffn_dim": shape.d_ff,
        "do_layer_norm_before": shape.norm_first,
        "activation_function": shape.activation,
        "enable_bias": shape.o_bias,
        "word_embed_proj_dim": shape.d_embedding or shape.d_model,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _of_layer_normed(config: PretrainedConfig, *, bias: bool) -> dict[str, Any]:
    """What GPT-2 and OPT have in common."""
    activation = _activation("activation_function", config.activation_function)
    biases = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), bias)
    return {"norm": "layer", "activation": activation, "gated": False} | biases


def _activation(field: str, name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"config.json: {field}: {name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
