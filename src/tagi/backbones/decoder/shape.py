"""The architecture of a decoder-only language model: every family is a point in this space."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagi.config import Frozen, Positive

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt"]
"""Whose names the weights have in files; the computation is told by the other fields alone."""


class Rotary(Frozen):
    """Rotary positions (Su et al. 2021), in the order of halves that Hugging Face uses."""

    theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: Annotated[float, Field(gt=0.0)] = 1.0
    """By which wave lengths grow: all of them (linear), or the long ones (llama3)."""
    low_frequency: Annotated[float, Field(gt=0.0)] = 1.0
    high_frequency: Annotated[float, Field(gt=0.0)] = 4.0
    original_positions: Positive = 8192
    """llama3: waves are long that fit into so many positions fewer than `low_frequency` times, and short that fit more
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
