"""Tiny random decoder-only models of every family, in `transformers` and in ours, with the same weights."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from builders import VOCABULARY, normal, seeded
from tagi.backbones.base import Prepared
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.weights import load_decoder
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site
from tagi.config import Target

ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 32,
}
TARGETS: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Variant:
    """One member of a family: `transformers`' name of it and its config."""

    name: str
    family: str
    config: dict[str, Any] = field(hash=False)


VARIANTS = (
    Variant("llama", "llama", ROTARY),
    Variant("llama-mha-biases", "llama", ROTARY | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    Variant("llama-one-kv-head", "llama", ROTARY | {"num_key_value_heads": 1, "head_dim": 6}),
    Variant("llama3-rotary-tied", "llama", ROTARY | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    Variant(
        "llama-linear-rotary",
        "llama",
        ROTARY | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    Variant("smollm", "llama", ROTARY | {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36}),
    Variant("mistral-window", "mistral", ROTARY | {"sliding_window": 5}),
    Variant("mistral-full", "mistral", ROTARY | {"sliding_window": None, "head_dim": 10}),
    Variant("qwen2", "qwen2", ROTARY | {"tie_word_embeddings": True}),
    Variant(
        "qwen2-window", "qwen2", ROTARY | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    ),
    Variant("qwen3", "qwen3", ROTARY | {"head_dim": 12}),
    Variant("gpt2", "gpt2", GPT2),
    Variant("gpt2-narrow", "gpt2", GPT2 | {"n_inner": 24, "activation_function": "relu", "tie_word_embeddings": False}),
    Variant("opt", "opt", OPT),
    Variant("opt-350m", "opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    Variant("opt-no-biases", "opt", OPT | {"enable_bias": False}),
)
ONE_EACH = tuple(one for one in VARIANTS if one.name in ("llama", "mistral-window", "qwen2", "qwen3", "gpt2", "opt"))


@dataclass(frozen=True)
class Pair:
    """The same weights in `transformers` and in our model, and the folder that both read."""

    theirs: Any
    ours: Decoder
    folder: Path
    variant: Variant


@cache
@torch.inference_mode(False)  # whoever asks first: others train it
def pair(variant: Variant) -> Pair:
    """A member with random weights; norms and biases are random too."""
    folder = Path(tempfile.mkdtemp(prefix="tagi-family-"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings: dict[str, Any] = variant.config | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[variant.family](**settings), dtype=torch.float32)
    generator = seeded(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    theirs.eval().save_pretrained(folder)
    return Pair(theirs, load_decoder(folder).eval(), folder, variant)


def batch(lengths: Sequence[int], *, seed: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Random token ids and their bool mask, padded on one side with random tokens, which count as none."""
    longest = max(lengths)
    ids = torch.randint(2, VOCABULARY, (len(lengths), longest), generator=seeded(seed))
    places, sizes = torch.arange(longest), torch.tensor(lengths)[:, None]
    return ids, places < sizes if side == "right" else places >= longest - sizes


def their_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (R, N, V), the positions of every row counted from its first token."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False).logits


def random_lora(
    model: Decoder,
    tasks: int,
    *,
    seed: int,
    targets: tuple[Target, ...] = ("q", "v"),
    rank: int = 3,
    scale: float = 2.0,
) -> dict[Site, Factors]:
    """Random LoRA at every site of `targets` that the model has, large enough to move the logits."""
    lora: dict[Site, Factors] = {}
    for number, site in enumerate(one for one in model.site_weights() if one.place in targets):
        width_in, width_out = model.site_shape(site)
        a = normal(tasks, rank, width_in, seed=seed + 2 * number) * width_in**-0.5
        b = normal(tasks, width_out, rank, seed=seed + 2 * number + 1) * 0.3
        lora[site] = Factors(a, b, scale)
    return lora


def alone(count: int) -> Rows:
    """Rows that share one task."""
    return Rows(1, count)


def bare(modules: Modules | None = None) -> Prepared:
    """A task with nothing to attend to."""
    return Prepared(1, modules or {})


def untold(model: Decoder, tasks: int = 1) -> EncodedInstruction:
    """Tasks without an instruction."""
    return model.read(torch.zeros(tasks, 0, dtype=torch.long), torch.zeros(tasks, 0, dtype=torch.bool))
