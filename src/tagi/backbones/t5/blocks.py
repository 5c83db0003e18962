"""The blocks of a T5: attention, feed-forward, encoder and decoder blocks. Shapes: see `rows.py`."""

from torch import Tensor, nn

from tagi.backbones import attention as att
from tagi.backbones.attention import join_heads, split_heads
from tagi.backbones.base import Fuse, Prepared
from tagi.backbones.cache import KeyValue, Past
from tagi.backbones.layers import ACTIVATIONS, RMSNorm
from tagi.backbones.lora import bottleneck, prefixed, project
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Modules, Site, SiteKind
from tagi.backbones.t5.cache import Inputs
from tagi.config import T5Shape


class Attention(nn.Module):
    """One attention module; `kind` and `layer` name the sites of its q and v projections."""

    def __init__(self, shape: T5Shape, kind: SiteKind, layer: int) -> None:
        super().__init__()
        self.heads = shape.num_heads
        self.site_q, self.site_v = Site(kind, layer, "q"), Site(kind, layer, "v")
        self.site_prefix = Site(kind, layer, "prefix") if kind != "decoder.cross" else None
        self.layer = layer
        self.norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.q = nn.Linear(shape.d_model, shape.inner_dim, bias=False)
        self.k = nn.Linear(shape.d_model, shape.inner_dim, bias=False)
        self.v = nn.Linear(shape.d_model, shape.inner_dim, bias=False)
        self.o = nn.Linear(shape.inner_dim, shape.d_model, bias=False)
        self.dropout = nn.Dropout(shape.dropout_rate)

    @property
    def weight_dropout(self) -> float:
        """Probability that an attention weight is dropped; 0 outside training."""
        return self.dropout.p if self.training else 0.0

    def query(self, x_RLD: Tensor, modules: Modules, rows: Rows) -> Tensor:
        """Normed hidden states to queries (R, H, L, K)."""
        return split_heads(project(x_RLD, self.q.weight, modules.get(self.site_q), rows), self.heads)

    def key_value(self, x_RLD: Tensor, modules: Modules, rows: Rows) -> KeyValue:
        """Hidden states to keys and values (R, H, L, K)."""
        v = project(x_RLD, self.v.weight, modules.get(self.site_v), rows)
        return KeyValue(split_heads(self.k(x_RLD), self.heads), split_heads(v, self.heads))

    def attend(self, q_RHOK: Tensor, own: KeyValue, bias: Tensor, modules: Modules, rows: Rows) -> Tensor:
        """Attention to keys and values, and to the prefix that each row has here, if any; (R, O, D)."""
        dropout = self.weight_dropout
        prefix = modules.get(self.site_prefix) if self.site_prefix else None
        return self.output(prefixed(att.attend(q_RHOK, own, bias, dropout), q_RHOK, prefix, rows, dropout))

    def output(self, x_RHLK: Tensor) -> Tensor:
        """Heads back to the residual stream (R, L, D)."""
        return self.dropout(self.o(join_heads(x_RHLK)))


class FeedForward(nn.Module):
    """wo(act(wi x)), or wo(act(wi x) · (wi_gate x)) when gated, with pre-norm, bottleneck adapter and residual."""

    def __init__(self, shape: T5Shape, kind: SiteKind, layer: int) -> None:
        super().__init__()
        self.site = Site(kind, layer, "bottleneck")
        self.norm = RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.wi = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.wi_gate = nn.Linear(shape.d_model, shape.d_ff, bias=False) if shape.gated else None
        self.wo = nn.Linear(shape.d_ff, shape.d_model, bias=False)
        self.activation = ACTIVATIONS[shape.activation]
        self.dropout = nn.Dropout(shape.dropout_rate)

    def forward(self, x_RLD: Tensor, modules: Modules, rows: Rows) -> Tensor:
        normed = self.norm(x_RLD)
        inner = self.activation(self.wi(normed))
        if self.wi_gate is not None:
            inner = inner * self.wi_gate(normed)
        adapted = bottleneck(self.wo(self.dropout(inner)), modules.get(self.site), rows)
        return x_RLD + self.dropout(adapted)


class EncoderBlock(nn.Module):
    """Self-attention, whatever the caller adds after it (Eq. 1), feed-forward."""

    def __init__(self, shape: T5Shape, layer: int) -> None:
        super().__init__()
        self.attention = Attention(shape, "encoder.self", layer)
        self.feed_forward = FeedForward(shape, "encoder.feed_forward", layer)

    def forward(self, x_RND: Tensor, bias: Tensor, modules: Modules, rows: Rows, fuse: Fuse | None) -> Tensor:
        normed = self.attention.norm(x_RND)
        q = self.attention.query(normed, modules, rows)
        own = self.attention.key_value(normed, modules, rows)
        x_RND = x_RND + self.attention.attend(q, own, bias, modules, rows)
        if fuse is not None:
            x_RND = fuse(self.attention.layer, x_RND, rows)
        return self.feed_forward(x_RND, modules, rows)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention over (I; F), feed-forward."""

    def __init__(self, shape: T5Shape, layer: int) -> None:
        super().__init__()
        self.attention = Attention(shape, "decoder.self", layer)
        self.cross = Attention(shape, "decoder.cross", layer)
        self.feed_forward = FeedForward(shape, "decoder.feed_forward", layer)

    def forward(
        self,
        x_ROD: Tensor,
        bias: Tensor,
        inputs: Inputs,
        told_bias: Tensor | None,
        prepared: Prepared,
        rows: Rows,
        past: Past | None,
    ) -> tuple[Tensor, KeyValue]:
        modules, normed = prepared.modules, self.attention.norm(x_ROD)
        own = self.attention.key_value(normed, modules, rows)
        own = past.append(self.attention.layer, own) if past else own
        q = self.attention.query(normed, modules, rows)
        x_ROD = x_ROD + self.attention.attend(q, own, bias, modules, rows)
        x_ROD = x_ROD + self._cross(x_ROD, inputs, told_bias, prepared, rows)
        return self.feed_forward(x_ROD, modules, rows), own

    def _cross(self, x_ROD: Tensor, inputs: Inputs, told_bias: Tensor | None, prepared: Prepared, rows: Rows) -> Tensor:
        layer, dropout = self.cross.layer, self.cross.weight_dropout
        q = self.cross.query(self.cross.norm(x_ROD), prepared.modules, rows)
        own, attended = inputs.layers[layer], prepared.attended
        if attended is None or told_bias is None:
            return self.cross.output(att.attend(q, own, inputs.bias, dropout))
        told = attended.layers[layer]
        return self.cross.output(att.attend_concatenated(q, own, inputs.bias, told, told_bias, rows, dropout))
