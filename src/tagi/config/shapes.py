"""The architectures of language models, and the published T5 shapes by name.

`t5-v1_1-*` is also the shape of the LM-adapted and the Flan models of that size; T0 3B and 11B are xl and xxl.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tagi.config.base import Frozen, Positive


class T5Shape(Frozen):
    """Architecture of a T5 backbone; the three code paths of the family are points in this space."""

    vocab_size: Positive
    d_model: Positive = 128
    d_kv: Positive = 16
    d_ff: Positive = 512
    num_layers: Positive = 3
    num_decoder_layers: Positive = 3
    num_heads: Positive = 8
    relative_attention_num_buckets: Positive = 32
    relative_attention_max_distance: Positive = 128
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    layer_norm_epsilon: float = 1e-6
    activation: Literal["relu", "gelu_new", "gelu", "silu"] = "relu"
    gated: bool = False
    tied: bool = True
    """Whether the output projection is the embedding matrix itself (v1.0) or a matrix of its own (v1.1)."""
    scale_outputs: bool = True
    """Whether decoder outputs are multiplied by d_model^-0.5 before the output projection (v1.0)."""
    pad_token_id: int = 0
    eos_token_ids: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    """Any of them ends an answer."""
    decoder_start_token_id: int = 0

    @model_validator(mode="after")
    def _gated_gelu(self) -> Self:
        if self.gated and self.activation == "gelu":
            raise ValueError("activation: the family's gated GELU is gelu_new; its files cannot say otherwise")
        return self

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stack: encoder and decoder."""
        return self.num_layers, self.num_decoder_layers

    def with_depths(self, depths: Sequence[int]) -> Self:
        """The same widths with so many blocks in each stack."""
        layers, decoder_layers = depths
        return self.model_copy(update={"num_layers": layers, "num_decoder_layers": decoder_layers})


Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt"]
"""Whose names the weights have in files; the computation is told by the other fields alone."""


class Rotary(Frozen):
    """Rotary positions (Su et al. 2021), in the order of halves that Hugging Face uses."""

    theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: Annotated[float, Field(gt=0.0)] = 1.0
    """By which chunk lengths grow: all of them (linear), or the long ones (llama3)."""
    low_frequency: Annotated[float, Field(gt=0.0)] = 1.0
    high_frequency: Annotated[float, Field(gt=0.0)] = 4.0
    original_positions: Positive = 8192
    """llama3: chunks are long that fit into so many positions fewer than `low_frequency` times, and short that fit more
    than `high_frequency` times; those between are grown in part."""

    @model_validator(mode="after")
    def _bands(self) -> Self:
        if self.scaling == "llama3" and self.low_frequency >= self.high_frequency:
            raise ValueError(f"low_frequency {self.low_frequency} is not below high_frequency {self.high_frequency}")
        return self


class Learned(Frozen):
    """A table of positions; the first `offset` rows belong to none (OPT has two)."""

    offset: Annotated[int, Field(ge=0)] = 0


class DecoderShape(Frozen):
    """Architecture of a decoder-only language model."""

    family: Family = "llama"
    vocab_size: Positive
    d_model: Positive
    d_ff: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    max_positions: Positive
    """Tokens of instruction, input and answer together, at most."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    norm_first: bool = True
    """Whether norms stand before attention and MLP and one at the end; else behind each residual (OPT 350M)."""
    rotary: Rotary | None = None
    learned: Learned | None = None
    activation: Literal["silu", "gelu", "gelu_new", "relu"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether each head's queries and keys are normed before they are rotated (Qwen3)."""
    window: Positive | None = None
    """Tokens, itself among them, that a token sees in `window_layers`."""
    window_layers: tuple[int, ...] = ()
    d_embedding: Positive | None = None
    """Width of the token embeddings where it is not `d_model` (OPT 350M); projected in and out."""
    tied: bool = True
    """Whether the output projection is the embedding matrix itself."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Any of them ends an answer."""
    pad_token_id: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if (self.rotary is None) == (self.learned is None):
            raise ValueError("positions are either rotary or learned")
        if self.rotary is not None and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, which rotary positions cannot split into halves")
        if self.window_layers and self.window is None:
            raise ValueError("window_layers need a window")
        if any(not 0 <= layer < self.num_layers for layer in self.window_layers):
            raise ValueError(f"window_layers are layers from 0 to {self.num_layers - 1}")
        special = (self.bos_token_id, self.pad_token_id, *self.eos_token_ids)
        if outside := [one for one in special if one is not None and not 0 <= one < self.vocab_size]:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return self

    @property
    def q_dim(self) -> int:
        """Width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys, and of all values, of a token."""
        return self.num_kv_heads * self.head_dim

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of its one stack."""
        return (self.num_layers,)

    def with_depths(self, depths: Sequence[int]) -> Self:
        """The same widths with so many blocks, the first ones."""
        (layers,) = depths
        windows = tuple(layer for layer in self.window_layers if layer < layers)
        return self.model_copy(update={"num_layers": layers, "window_layers": windows})


Shape = T5Shape | DecoderShape
"""Of a language model of any family."""
_FIRST = {"activation": "relu", "gated": False, "tied": True, "scale_outputs": True}
_SECOND = {"activation": "gelu_new", "gated": True, "tied": False, "scale_outputs": False}


def _shape(version: dict[str, Any], d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    depth = {"num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}
    widths = {"vocab_size": 32_128, "d_model": d_model, "d_kv": 64, "d_ff": d_ff, "dropout_rate": 0.1}
    return widths | depth | version


SHAPES: dict[str, dict[str, Any]] = {
    "t5-small": _shape(_FIRST, 512, 2048, 6, 8),
    "t5-base": _shape(_FIRST, 768, 3072, 12, 12),
    "t5-v1_1-small": _shape(_SECOND, 512, 1024, 8, 6),
    "t5-v1_1-base": _shape(_SECOND, 768, 2048, 12, 12),
    "t5-v1_1-large": _shape(_SECOND, 1024, 2816, 24, 16),
    "t5-v1_1-xl": _shape(_SECOND, 2048, 5120, 24, 32),
    "t5-v1_1-xxl": _shape(_SECOND, 4096, 10_240, 24, 64),
}
"""Name -> the fields of `tagi.config.T5Shape`."""


def named_shape(name: str) -> dict[str, Any]:
    """The fields of a published shape; an unknown one is a `ValueError` that names the nearest."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(SHAPES)}"
        raise ValueError(f"{name!r} is no published shape{hint}")
    return dict(SHAPES[name])


NamedShape = Annotated[T5Shape, BeforeValidator(lambda shape: named_shape(shape) if isinstance(shape, str) else shape)]
"""A mapping, or the name of a published shape such as t5-v1_1-base."""
