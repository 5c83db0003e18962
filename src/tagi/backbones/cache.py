"""What attention reads again: keys and values.

Values, not state: each comes back from the step that made it and goes into the next one. Shapes: see `rows.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROOM = 4096
"""Tokens that room is made for at once, however many an answer may have."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Keys and values of one attention, (rows or tasks, H, L, K) each."""

    k: Tensor
    v: Tensor

    def select(self, index: Tensor) -> "KeyValue":
        """Those of some rows, in the order of `index`."""
        return KeyValue(self.k[index], self.v[index])

    def span(self, start: int, end: int) -> "KeyValue":
        """The places from `start` up to `end`, a view."""
        return KeyValue(self.k[:, :, start:end], self.v[:, :, start:end])

    def padded(self, before: int, after: int) -> "KeyValue":
        """The same with empty places before and behind."""
        return KeyValue(*(F.pad(x, (0, 0, before, after)) for x in (self.k, self.v)))

    @staticmethod
    def stack(each: Sequence["KeyValue"]) -> "KeyValue":
        """Rows of several batches, all equally long, one after another."""
        return KeyValue(torch.cat([one.k for one in each]), torch.cat([one.v for one in each]))

    def concatenate(self, other: "KeyValue") -> "KeyValue":
        """These places, then the other's of the same rows."""
        return KeyValue(torch.cat((self.k, other.k), dim=2), torch.cat((self.v, other.v), dim=2))


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values of what a decoder has read so far, with room for more.

    Rows that began at different steps share the places: the last place holds every row's newest token, and places
    before a row's first are hidden from it. Decoding writes into the room, so a past is continued once only.
    """

    layers: tuple[KeyValue, ...]  # (R, H, at least length, K)
    length: int
    first: Tensor | None = None  # (R,) each row's first place; None where every row began at place 0

    def append(self, layer: int, own: KeyValue) -> KeyValue:
        """Everything that a layer has read, with its newest keys and values (R, H, O, K) at the end."""
        held, end = self.layers[layer], self.length + own.k.shape[2]
        if end > held.k.shape[2]:
            return held.span(0, self.length).concatenate(own)
        held.k[:, :, self.length : end] = own.k
        held.v[:, :, self.length : end] = own.v
        return held.span(0, end)

    def after(self, layers: tuple[KeyValue, ...]) -> "Past":
        """The past of the next step, from what `append` gave for every layer."""
        length = layers[0].k.shape[2]
        fits = length <= self.layers[0].k.shape[2]
        return Past(self.layers if fits else layers, length, self.first)

    def with_room(self, tokens: int) -> "Past":
        """The same with room for so many tokens more, of very many for the first; it grows when they are used up."""
        layers = tuple(own.span(0, self.length).padded(0, min(tokens, ROOM)) for own in self.layers)
        return Past(layers, self.length, self.first)

    def select(self, index: Tensor) -> "Past":
        """The past of some rows, in the order of `index`; places that none of them can see are dropped."""
        first = None if self.first is None else self.first[index]
        start = 0 if first is None or not first.numel() else int(first.min())
        layers = tuple(own.span(start, own.k.shape[2]).select(index) for own in self.layers)
        return Past(layers, self.length - start, None if first is None else first - start)

    def stack(self, other: "Past", room: int) -> "Past":
        """These rows, then the other's, all ending at the same place, with room for so many tokens more."""
        length = max(self.length, other.length)
        pairs = zip(self._ending_at(length), other._ending_at(length), strict=True)
        layers = tuple(KeyValue.stack(pair).padded(0, min(room, ROOM)) for pair in pairs)
        return Past(layers, length, torch.cat((self._began(length), other._began(length))))

    def put(self, places: Tensor, other: "Past", room: int) -> "Past":
        """The other's rows in the places (C,) of some of these, all ending at the same place, with room for so many
        tokens more. Nothing but the new rows is copied while there is room for them."""
        length = max(self.length, other.length)
        unseen = 0 if self.first is None else int(self.first.min())
        start = min(unseen, length - other.length)  # the new rows may need places that none of these can see
        ours, more = self, length - self.length
        if more or self.length + min(room, ROOM) > self.layers[0].k.shape[2]:
            layers = [own.span(start, self.length).padded(more, min(room, ROOM)) for own in self.layers]
            ours = Past(tuple(layers), length - start, self._began(length) - start)
        for held, new in zip(ours.layers, other.layers, strict=True):
            end = ours.length
            held.k[places, :, end - other.length : end] = new.k[:, :, : other.length]
            held.v[places, :, end - other.length : end] = new.v[:, :, : other.length]
        first = ours._began(ours.length).index_copy(0, places, other._began(ours.length))
        return Past(ours.layers, ours.length, first)

    def hidden(self, length: int) -> Tensor | None:
        """Which of `length` places stand before each row's first, (R, 1, 1, length); None where none does."""
        if self.first is None:
            return None
        return (torch.arange(length, device=self.first.device) < self.first[:, None])[:, None, None]

    def _ending_at(self, length: int) -> list[KeyValue]:
        return [own.span(0, self.length).padded(length - self.length, 0) for own in self.layers]

    def _began(self, length: int) -> Tensor:
        """Each row's first place in a past that ends at `length`."""
        held = self.layers[0].k
        first = held.new_zeros(held.shape[0], dtype=torch.long) if self.first is None else self.first
        return first + length - self.length


def distances(length: int, past: int, device: torch.device) -> Tensor:
    """Place of every key - place of each of the `length` queries behind `past` keys, (1, length, past + length)."""
    keys = torch.arange(past + length, device=device)
    return (keys[None, :] - keys[past:, None])[None]
