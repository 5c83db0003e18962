"""The blocks of a decoder-only model. Shapes: see `tagi.backbones.rows`."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from tagi.backbones.attention import join_heads, split_heads
from tagi.backbones.base import Prepared
from tagi.backbones.cache import KeyValue, Past
from tagi.backbones.decoder.attention import View, attend, weights
from tagi.backbones.decoder.rotary import Angles, rotate
from tagi.backbones.layers import ACTIVATIONS
from tagi.backbones.lora import bottleneck, prefixed, project
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Site
from tagi.config import DecoderShape, Target


@dataclass(frozen=True, slots=True)
class Pass:
    """What all blocks of one pass share."""

    prepared: Prepared
    rows: Rows
    full: View
    windowed: View | None
    by: Angles | None
    past: Past | None
    watched: list[Tensor] | None = None
    """Given where somebody looks on: every block adds how its queries attend to the instruction, (R, H, L, S)."""
    states: list[Tensor] | None = None
    """Given where they are asked for: what every block's attention and MLP read, (R, L, D) each."""


class Attention(nn.Module):
    """Self-attention with grouped heads."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        self.layer, self.windowed = layer, layer in shape.window_layers
        self.heads, self.kv_heads = shape.num_heads, shape.num_kv_heads
        self.q = nn.Linear(shape.d_model, shape.q_dim, bias=shape.qkv_bias)
        self.k = nn.Linear(shape.d_model, shape.kv_dim, bias=shape.qkv_bias)
        self.v = nn.Linear(shape.d_model, shape.kv_dim, bias=shape.qkv_bias)
        self.o = nn.Linear(shape.q_dim, shape.d_model, bias=shape.o_bias)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(self, x_RLD: Tensor, this: Pass) -> tuple[Tensor, KeyValue]:
        """Normed hidden states to the sublayer's output (R, L, D) and the keys and values (R, H, C, K) that it read."""
        if this.states is not None:
            this.states.append(x_RLD)
        q = split_heads(_project(self, "q", x_RLD, this), self.heads)
        k = split_heads(_project(self, "k", x_RLD, this), self.kv_heads)
        v = split_heads(_project(self, "v", x_RLD, this), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if this.by is not None:
            q, k = rotate(q, this.by), rotate(k, this.by)
        own = KeyValue(k, v) if this.past is None else this.past.append(self.layer, KeyValue(k, v))
        attended = this.prepared.attended
        seen = this.windowed if self.windowed and this.windowed is not None else this.full
        if this.watched is not None and attended is not None:
            this.watched.append(weights(q, own, attended.layers[self.layer], seen, this.rows))
        mixed = attend(q, own, attended and attended.layers[self.layer], seen, this.rows)
        prefix = this.prepared.modules.get(Site("decoder.self", self.layer, "prefix"))
        mixed = prefixed(mixed, q * q.shape[-1] ** -0.5, prefix, this.rows)
        return _project(self, "o", join_heads(mixed), this), own


class FeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) · up x) when gated, then the bottleneck adapter."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        self.layer, self.activation = layer, ACTIVATIONS[shape.activation]
        self.gate = nn.Linear(shape.d_model, shape.d_ff, bias=shape.mlp_bias) if shape.gated else None
        self.up = nn.Linear(shape.d_model, shape.d_ff, bias=shape.mlp_bias)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=shape.mlp_bias)

    def forward(self, x_RLD: Tensor, this: Pass) -> Tensor:
        if this.states is not None:
            this.states.append(x_RLD)
        up = _project(self, "up", x_RLD, this)
        inner = self.activation(up) if self.gate is None else self.activation(_project(self, "gate", x_RLD, this)) * up
        adapter = this.prepared.modules.get(Site("decoder.feed_forward", self.layer, "bottleneck"))
        return bottleneck(_project(self, "down", inner, this), adapter, this.rows)


class Block(nn.Module):
    """Attention and MLP, each with its norm and residual."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        self.norm_first = shape.norm_first
        self.attention_norm, self.feed_forward_norm = norm(shape), norm(shape)
        self.attention, self.feed_forward = Attention(shape, layer), FeedForward(shape, layer)

    def forward(self, x_RLD: Tensor, this: Pass) -> tuple[Tensor, KeyValue]:
        mixed, own = self.attention(self.attention_norm(x_RLD) if self.norm_first else x_RLD, this)
        x_RLD = x_RLD + mixed
        if self.norm_first:
            return x_RLD + self.feed_forward(self.feed_forward_norm(x_RLD), this), own
        x_RLD = self.attention_norm(x_RLD)
        return self.feed_forward_norm(x_RLD + self.feed_forward(x_RLD, this)), own


def _project(part: Attention | FeedForward, target: Target, x_RLI: Tensor, this: Pass) -> Tensor:
    """One projection of a block, with each row's LoRA of it: (R, L, in) -> (R, L, out)."""
    linear = cast(nn.Linear, part.get_submodule(target))
    factors = this.prepared.modules.get(lora_site(part.layer, target))
    return project(x_RLI, linear.weight, factors, this.rows, linear.bias)


def lora_site(layer: int, target: Target) -> Site:
    """The site of LoRA at a projection."""
    return Site("decoder.self" if target in ("q", "k", "v", "o") else "decoder.feed_forward", layer, target)


def norm(shape: DecoderShape) -> nn.Module:
    """A new norm of the model's kind."""
    kind = nn.RMSNorm if shape.norm == "rms" else nn.LayerNorm
    return kind(shape.d_model, eps=shape.norm_eps)
