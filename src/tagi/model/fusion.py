"""Fusion of the instruction into the encoder (Eq. 1, §3.2.1). Shapes: see `rows.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tagi.backbones.attention import attend_shared, join_heads, padding_bias, split_heads
from tagi.backbones.cache import KeyValue, beside
from tagi.backbones.rows import Rows
from tagi.backbones.t5.model import RMSNorm
from tagi.config import FusionConfig
from tagi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FusionMemory:
    """Keys and values of the instruction memory, once per task, for each fusion layer."""

    layers: dict[int, KeyValue]  # block number -> (T, H, S, K)
    bias: Tensor  # (T, 1, 1, S)
    mask: Tensor  # (T, 1, 1, S), 1 where a token is

    def select(self, index: Tensor) -> "FusionMemory":
        """The memory of some tasks, in the order of `index`."""
        layers = {block: own.select(index) for block, own in self.layers.items()}
        return FusionMemory(layers, self.bias[index], self.mask[index])

    def beside(self, other: "FusionMemory") -> "FusionMemory":
        """These tasks, then the other's; the shorter ones padded."""
        ours, theirs = ((tuple(one.layers.values()), one.bias) for one in (self, other))
        layers, bias = beside(ours, theirs)
        return FusionMemory(dict(zip(self.layers, layers, strict=True)), bias, (bias == 0).to(self.mask.dtype))


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

    def key_value(self, memory_TSD: Tensor) -> KeyValue:
        """Keys and values of the instruction memory (T, H, S, K)."""
        return KeyValue(split_heads(self.k(memory_TSD), self.heads), split_heads(self.v(memory_TSD), self.heads))

    def forward(self, x_RND: Tensor, own: KeyValue, bias: Tensor, mask: Tensor, rows: Rows) -> Tensor:
        q = split_heads(self.q(self.norm(x_RND)), self.heads) * self.scale
        seen = mask.any(-1, keepdim=True)  # an empty memory adds exactly nothing
        mixed = attend_shared(q, own, bias, rows) * rows.pick(seen) if mask.shape[-1] else torch.zeros_like(q)
        return x_RND + self.gate * self.o(join_heads(mixed))


class Fusion(nn.Module):
    """The fusion layers of an encoder: one in every n-th block."""

    def __init__(self, d_model: int, num_layers: int, config: FusionConfig) -> None:
        super().__init__()
        numbers = range(0, num_layers, config.every)
        self.layers = nn.ModuleDict({str(i): CrossAttentionLayer(d_model, config) for i in numbers})

    def prepare(self, memory_TSD: Tensor, mask_TS: Tensor) -> FusionMemory:
        """Everything of Eq. 1 that depends on the instruction alone: (T, S, D), (T, S) -> keys and values."""
        layers = cast(Mapping[str, CrossAttentionLayer], self.layers)
        key_values = {int(i): layer.key_value(memory_TSD) for i, layer in layers.items()}
        mask = mask_TS[:, None, None, :].to(memory_TSD.dtype)
        return FusionMemory(key_values, padding_bias(mask_TS, memory_TSD.dtype), mask)

    def fuse(self, block: int, x_RND: Tensor, memory: FusionMemory, rows: Rows) -> Tensor:
        """Apply the fusion layer of one block, if it has one."""
        if block not in memory.layers:
            return x_RND
        layer = self.layers[str(block)]
        return layer(x_RND, memory.layers[block], memory.bias, memory.mask, rows)


def initialise(fusion: Fusion, generator: torch.Generator) -> None:
    """Every matrix by its fan-in; gates at zero, so that an untrained fusion changes nothing."""
    for layer in fusion.layers.values():
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, module.in_features**-0.5, generator=generator)
