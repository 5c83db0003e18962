"""What a T5's decoder attends to: the encoded inputs, and what it has written so far."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.attention import padding_bias
from tagi.backbones.base import Prepared
from tagi.backbones.cache import KeyValue, Past
from tagi.backbones.encoded import Attended
from tagi.backbones.rows import Rows


@dataclass(frozen=True, slots=True)
class Inputs:
    """Encoded inputs as the decoder's cross-attention sees them."""

    layers: tuple[KeyValue, ...]  # (R, H, N, K)
    bias: Tensor  # (R, 1, 1, N), or by query (R, 1, O, N): 0 where a token is, else the lowest float
    whole: bool = False
    """Whether each row's instruction stands in front of its input here."""

    def select(self, index: Tensor) -> "Inputs":
        """Those of some rows, in the order of `index`."""
        return Inputs(tuple(own.select(index) for own in self.layers), self.bias[index], self.whole)

    def with_instruction(self, attended: Attended, rows: Rows) -> "Inputs":
        """The same with each row's instruction copied in front of its input, so that one attention reads both.

        Worth its copy where no two rows share an instruction, and for all rows of a batch if for one of them.
        """
        shared = (KeyValue(rows.pick(own.k), rows.pick(own.v)) for own in attended.layers)
        layers = tuple(told.concatenate(own) for told, own in zip(shared, self.layers, strict=True))
        bias = padding_bias(rows.pick(attended.mask), self.bias.dtype)
        return Inputs(layers, torch.cat((bias, self.bias), dim=-1), whole=True)

    def stack(self, other: "Inputs") -> "Inputs":
        """These rows, then the other's, the shorter ones padded."""
        longest = max(self.bias.shape[-1], other.bias.shape[-1])
        ours, theirs = self._padded(longest), other._padded(longest)
        layers = tuple(map(KeyValue.stack, zip(ours.layers, theirs.layers, strict=True)))
        return Inputs(layers, torch.cat((ours.bias, theirs.bias)), self.whole)

    def put(self, places: Tensor, other: "Inputs") -> "Inputs":
        """The other's rows in the places (C,) of some of these, in the same tensors while they fit."""
        longest = max(self.bias.shape[-1], other.bias.shape[-1])
        ours, theirs = self._padded(longest), other._padded(longest)
        for own, new in zip(ours.layers, theirs.layers, strict=True):
            own.k[places], own.v[places] = new.k, new.v
        ours.bias[places] = theirs.bias
        return ours

    def _padded(self, length: int) -> "Inputs":
        if not (more := length - self.bias.shape[-1]):
            return self
        bias = F.pad(self.bias, (0, more), value=torch.finfo(self.bias.dtype).min)
        return Inputs(tuple(own.padded(0, more) for own in self.layers), bias, self.whole)


@dataclass(frozen=True, slots=True)
class T5Cache:
    """What rows have read of their inputs and written of their answers. Implements `tagi.backbones.base.Cache`."""

    past: Past
    inputs: Inputs
    prepared: Prepared
    rows: Rows

    def select(self, index: Tensor) -> "T5Cache":
        return T5Cache(self.past.select(index), self.inputs.select(index), self.prepared, self.rows.select(index))

    def reordered(self, index: Tensor) -> "T5Cache":
        return replace(self, past=self.past.select(index))

    def stack(self, other: "T5Cache", prepared: Prepared, rows: Rows, room: int) -> "T5Cache":
        inputs = self._inputs_like(other).stack(other._inputs_like(self))
        return T5Cache(self.past.stack(other.past, room), inputs, prepared.encoder_done(), rows)

    def put(self, places: Tensor, other: "T5Cache", prepared: Prepared, rows: Rows, room: int) -> "T5Cache":
        inputs = self._inputs_like(other).put(places, other._inputs_like(self))
        return T5Cache(self.past.put(places, other.past, room), inputs, prepared.encoder_done(), rows)

    def given(self, prepared: Prepared, rows: Rows) -> "T5Cache":
        return replace(self, prepared=prepared.encoder_done(), rows=rows)

    def after(self, layers: tuple[KeyValue, ...]) -> "T5Cache":
        """One token on, from what each layer's self-attention has read."""
        return replace(self, past=self.past.after(layers))

    def _inputs_like(self, other: "T5Cache") -> Inputs:
        """The inputs, with their instructions in front if the other's have them there."""
        if self.inputs.whole or not other.inputs.whole:
            return self.inputs
        if self.prepared.attended is None:
            return replace(self.inputs, whole=True)
        return self.inputs.with_instruction(self.prepared.attended, self.rows)
