"""Fusion of the instruction into the encoder (Eq. 1, §3.2.1). Shapes: see `rows.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi.backbones.attention import attend_shared, join_heads, padding_bias, split_heads
from tagi.backbones.cache import KeyValue
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.layers import RMSNorm
from tagi.backbones.rows import Rows
from tagi.config import FusionConfig
from tagi.errors import ConfigError


class CrossAttentionLayer(nn.Module):
    """F_l = S_l + gate · W_o attention(W_q norm(S_l), W_k I, W_v I) (Eq. 1).

    The gate starts at zero, and an empty instruction adds nothing: both leave every bit of a frozen language model's
    outputs. The paper words it "followed by residual connection and layer normalization"; a norm behind the residual
    would rescale the hidden states whatever the gate, so it stands before the attention, as everywhere in T5.
    """

    def __init__(self, d_model: int, config: FusionConfig, eps: float = 1e-6) -> None:
        super().__init__()
        width = config.width or d_model // 4
        if width % config.heads:
            raise ConfigError(f"fusion.width: {width} is no multiple of fusion.heads ({config.heads})")
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.norm = RMSNorm(d_model, eps)
        self.q = nn.Linear(d_model, width, bias=False)
        self.k = nn.Linear(d_model, width, bias=False)
        self.v = nn.Linear(d_model, width, bias=False)
        self.o = nn.Linear(width, d_model, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def key_value(self, hidden_TSD: Tensor) -> KeyValue:
        """Keys and values of the encoded instruction (T, H, S, K)."""
        return KeyValue(split_heads(self.k(hidden_TSD), self.heads), split_heads(self.v(hidden_TSD), self.heads))

    def forward(self, x_RND: Tensor, own: KeyValue, bias: Tensor, mask: Tensor, rows: Rows) -> Tensor:
        q = split_heads(self.q(self.norm(x_RND)), self.heads) * self.scale
        seen = mask.any(-1, keepdim=True)  # an empty instruction adds exactly nothing
        mixed = attend_shared(q, own, bias, rows) * rows.pick(seen) if mask.shape[-1] else torch.zeros_like(q)
        return x_RND + self.gate * self.o(join_heads(mixed))


class Fusion(nn.Module):
    """The fusion layers of an encoder: one in every n-th block."""

    def __init__(self, d_model: int, num_layers: int, config: FusionConfig) -> None:
        super().__init__()
        numbers = range(0, num_layers, config.every)
        self.layers = nn.ModuleDict({str(i): CrossAttentionLayer(d_model, config) for i in numbers})

    def prepare(self, encoded: EncodedInstruction) -> "Fused":
        """Everything of Eq. 1 that depends on the instruction alone."""
        layers = cast(Mapping[str, CrossAttentionLayer], self.layers)
        return Fused(self, tuple(layer.key_value(encoded.hidden) for layer in layers.values()), encoded.mask)


@dataclass(frozen=True, slots=True)
class Fused:
    """The fusion layers with T tasks' instructions. Implements `tagi.backbones.base.Fuse`."""

    fusion: Fusion
    layers: tuple[KeyValue, ...]  # of every fusion layer, (T, H, S, K)
    mask: Tensor  # (T, S)

    def __call__(self, block: int, x_RND: Tensor, rows: Rows) -> Tensor:
        names = list(self.fusion.layers)
        if str(block) not in names:
            return x_RND
        own = self.layers[names.index(str(block))]
        mask = self.mask[:, None, None, :]
        return self.fusion.layers[str(block)](x_RND, own, padding_bias(self.mask, x_RND.dtype), mask, rows)

    def select(self, index: Tensor) -> "Fused":
        return Fused(self.fusion, tuple(own.select(index) for own in self.layers), self.mask[index])

    def stack(self, others: Sequence["Fused"]) -> "Fused":
        longest = max(one.mask.shape[1] for one in (self, *others))
        each = [one._padded(longest) for one in (self, *others)]
        layers = tuple(map(KeyValue.stack, zip(*(one.layers for one in each), strict=True)))
        return Fused(self.fusion, layers, torch.cat([one.mask for one in each]))

    def _padded(self, length: int) -> "Fused":
        more = length - self.mask.shape[1]
        return Fused(self.fusion, tuple(own.padded(0, more) for own in self.layers), F.pad(self.mask, (0, more)))


def initialise(fusion: Fusion, generator: torch.Generator) -> None:
    """Every matrix by its fan-in; gates at zero, so that an untrained fusion changes nothing."""
    for layer in fusion.layers.values():
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, module.in_features**-0.5, generator=generator)
