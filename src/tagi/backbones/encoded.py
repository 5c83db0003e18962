"""Instructions that a language model has read: values, for any number of tasks at a time.

Shapes: see `tagi.backbones.rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.cache import KeyValue


@dataclass(frozen=True, slots=True)
class Attended:
    """What all rows of a task attend to besides their own tokens: per block, keys and values that are never copied
    into a cache."""

    layers: tuple[KeyValue, ...]  # (T, H, S, K)
    mask: Tensor  # (T, S)

    @property
    def positions(self) -> Tensor:
        """Of every place, (T, S)."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def start(self) -> Tensor:
        """The position of an input's first token, (T,): where its instruction ends."""
        return self.mask.sum(1)

    def select(self, index: Tensor) -> "Attended":
        """That of some tasks, in the order of `index`."""
        return Attended(tuple(own.select(index) for own in self.layers), self.mask[index])

    def padded(self, length: int) -> "Attended":
        """The same with empty places behind, `length` in all."""
        if not (more := length - self.mask.shape[1]):
            return self
        return Attended(tuple(own.padded(0, more) for own in self.layers), F.pad(self.mask, (0, more)))

    def put(self, places: Tensor, other: "Attended") -> "Attended":
        """The other's tasks in the places (C,) of some of these; the shorter instructions padded."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        ours, theirs = self.padded(length), other.padded(length)
        for own, new in zip(ours.layers, theirs.layers, strict=True):
            own.k[places], own.v[places] = new.k, new.v
        ours.mask[places] = theirs.mask
        return ours

    def cut(self, length: int) -> "Attended":
        """The first `length` places."""
        return Attended(tuple(own.span(0, length) for own in self.layers), self.mask[:, :length])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Attended":
        """The same on another device, its numbers of another type if one is given."""
        layers = tuple(KeyValue(own.k.to(device, dtype), own.v.to(device, dtype)) for own in self.layers)
        return Attended(layers, self.mask.to(device))


@dataclass(frozen=True, slots=True)
class EncodedInstruction:
    """The instructions of T tasks that a language model has read."""

    hidden: Tensor  # (T, S, D), for the hypernetwork, and what an encoder-decoder's inputs attend to
    mask: Tensor  # (T, S)
    attended: Attended | None = None
    """What a decoder-only model's inputs attend to; None for an encoder-decoder and where there are no tokens."""
    states: Tensor | None = None
    """(T, S, P, D), what the projections of a decoder-only model read, see `Backbone.state`; where it was asked for."""

    @property
    def tasks(self) -> int:
        """T."""
        return self.mask.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        layers = () if self.attended is None else self.attended.layers
        states = () if self.states is None else (self.states,)
        return (self.hidden, self.mask, *states, *(x for own in layers for x in (own.k, own.v)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in self.tensors)

    def select(self, index: Tensor) -> "EncodedInstruction":
        """That of some tasks, in the order of `index`."""
        attended = None if self.attended is None else self.attended.select(index)
        states = None if self.states is None else self.states[index]
        return EncodedInstruction(self.hidden[index], self.mask[index], attended, states)

    def cut(self, length: int) -> "EncodedInstruction":
        """The first `length` places."""
        attended = None if self.attended is None or not length else self.attended.cut(length)
        states = None if self.states is None or not length else self.states[:, :length]
        return EncodedInstruction(self.hidden[:, :length], self.mask[:, :length], attended, states)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "EncodedInstruction":
        """The same on another device, its numbers of another type if one is given."""
        attended = None if self.attended is None else self.attended.to(device, dtype)
        states = None if self.states is None else self.states.to(device, dtype)
        return EncodedInstruction(self.hidden.to(device, dtype), self.mask.to(device), attended, states)


def stack_encoded(each: Sequence[EncodedInstruction]) -> EncodedInstruction:
    """Several batches of tasks as one, the shorter instructions padded; one without tokens attends to nothing."""
    longest = max(one.mask.shape[1] for one in each)
    hidden = torch.cat([F.pad(one.hidden, (0, 0, 0, longest - one.mask.shape[1])) for one in each])
    mask = torch.cat([F.pad(one.mask, (0, longest - one.mask.shape[1])) for one in each])
    attended = stack_attended([(one.attended, one.tasks) for one in each])
    return EncodedInstruction(hidden, mask, attended, _stack_states(each, longest))


def _stack_states(each: Sequence[EncodedInstruction], length: int) -> Tensor | None:
    """States (T, S, P, D), padded; None where none has any."""
    filled = next((one.states for one in each if one.states is not None), None)
    if filled is None:
        return None
    nothing = [filled.new_zeros(one.tasks, 0, *filled.shape[2:]) if one.states is None else one.states for one in each]
    return torch.cat([F.pad(one, (0, 0, 0, 0, 0, length - one.shape[1])) for one in nothing])


def stack_attended(each: Sequence[tuple[Attended | None, int]]) -> Attended | None:
    """What batches of so many tasks attend to, one after another, the shorter ones padded; None where none of them
    attends to anything."""
    filled = next((attended for attended, _ in each if attended is not None), None)
    if filled is None:
        return None
    all_filled = [nothing(filled, tasks) if attended is None else attended for attended, tasks in each]
    longest = max(one.mask.shape[1] for one in all_filled)
    padded = [one.padded(longest) for one in all_filled]
    layers = tuple(map(KeyValue.stack, zip(*(one.layers for one in padded), strict=True)))
    return Attended(layers, torch.cat([one.mask for one in padded]))


def nothing(like: Attended, tasks: int) -> Attended:
    """What so many tasks without an instruction attend to."""
    empty = (KeyValue(*(x.new_zeros(tasks, x.shape[1], 0, x.shape[3]) for x in (own.k, own.v))) for own in like.layers)
    return Attended(tuple(empty), like.mask.new_zeros(tasks, 0))
