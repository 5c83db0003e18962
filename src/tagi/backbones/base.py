"""The protocol that a language model fulfils, the only thing that the rest knows of one.

Task adapters and encoded instructions arrive as arguments, caches leave as return values. Masks are bool, True for a
token. Shapes: see `tagi.backbones.rows`; V is the vocabulary, E the width of the token embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from tagi.backbones.cache import KeyValue
from tagi.backbones.lora import Factors
from tagi.backbones.rows import Rows
from tagi.config import ModuleKind

SiteKind = Literal["encoder.self", "decoder.self", "decoder.cross", "encoder.feed_forward", "decoder.feed_forward"]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""A projection that LoRA can adapt."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place for a generated module: LoRA at a projection, a prefix before a self-attention's keys and values, or a
    bottleneck adapter behind a feed-forward layer."""

    kind: SiteKind
    layer: int
    place: Target | Literal["prefix", "bottleneck"]

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}.{self.place}"


Modules = Mapping[Site, Factors]


@dataclass(frozen=True, slots=True)
class Attended:
    """What all rows of a task attend to besides their own tokens: per block, keys and values that are never copied
    into a cache. A generated prefix stands in front of the encoded instruction."""

    layers: tuple[KeyValue, ...]  # (T, H, S, K)
    mask: Tensor  # (T, S)
    positions: Tensor  # (T, S)
    start: Tensor  # (T,), the position of an input's first token

    def select(self, index: Tensor) -> "Attended":
        """That of some tasks, in the order of `index`."""
        layers = tuple(own.select(index) for own in self.layers)
        return Attended(layers, self.mask[index], self.positions[index], self.start[index])

    def beside(self, other: "Attended") -> "Attended":
        """These tasks, then the other's; the shorter ones padded."""
        longest = max(self.mask.shape[1], other.mask.shape[1])
        ours, theirs = self.padded(longest), other.padded(longest)
        layers = tuple(a.beside(b) for a, b in zip(ours.layers, theirs.layers, strict=True))
        pairs = ((ours.mask, theirs.mask), (ours.positions, theirs.positions), (ours.start, theirs.start))
        return Attended(layers, *(torch.cat(pair) for pair in pairs))

    def padded(self, length: int) -> "Attended":
        """The same with empty places behind, `length` in all."""
        more = length - self.mask.shape[1]
        layers = tuple(own.padded(0, more) for own in self.layers)
        mask, positions = (nn.functional.pad(x, (0, more)) for x in (self.mask, self.positions))
        return Attended(layers, mask, positions, self.start)


@dataclass(frozen=True, slots=True)
class Read:
    """An instruction that a language model has read."""

    hidden: Tensor  # (T, S, D), for the adapter generator
    mask: Tensor  # (T, S)
    attended: Attended | None
    """What inputs attend to later; None where that is made of `hidden` and the task's modules, or of no tokens."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """T tasks ready for inputs: the modules that their rows run with, and what they attend to."""

    modules: Modules = field(default_factory=dict[Site, Factors])
    attended: Attended | None = None


class Cache(Protocol):
    """What rows have read so far; a value, continued once only."""

    @property
    def rows(self) -> Rows:
        """Which task each row belongs to."""
        ...

    def select(self, index: Tensor) -> Self:
        """Some rows (C,), in that order, some perhaps more than once: rows that go on, and beams."""
        ...

    def beside(self, other: Self, prepared: Prepared, rows: Rows, room: int) -> Self:
        """These rows, then the other's, which run on with `prepared`, with room for so many tokens more."""
        ...


class Backbone(Protocol):
    """A language model that runs with task adapters given as arguments."""

    @property
    def shape(self) -> Any:
        """Its architecture, a config of its family."""
        ...

    @property
    def d_model(self) -> int:
        """Width D of the residual stream."""
        ...

    @property
    def embedding(self) -> nn.Embedding:
        """Token embeddings (V, E)."""
        ...

    def sites(self, kind: ModuleKind = "lora", targets: tuple[Target, ...] = ("q", "v")) -> tuple[Site, ...]:
        """Every place for a module of that kind, in a fixed order; `targets` are the projections that LoRA adapts."""
        ...

    def site_shape(self, site: Site) -> tuple[int, int]:
        """(in, out) widths of a site's two matrices, A (r, in) and B (out, r)."""
        ...

    def site_weights(self) -> Mapping[Site, Tensor]:
        """The projection matrix (out, in) of every site of LoRA."""
        ...

    def read(self, ids: Tensor, mask: Tensor, *, modules: Modules | None = None) -> Read:
        """One pass over instructions, ids and mask (T, S): without adapters, or every task with its own."""
        ...

    def prepare(self, read: Read | None, modules: Modules) -> Prepared:
        """Tasks with their modules and, if any, the instructions that their inputs attend to."""
        ...

    def begin(
        self, ids: Tensor, mask: Tensor, *, prepared: Prepared, rows: Rows, room: int = 0
    ) -> tuple[Tensor, Cache]:
        """Inputs (R, N), padded on either side, to the first token's logits (R, V) and what the next step goes on from.

        Args:
            room: tokens that the cache has places for without growing.
        """
        ...

    def step(self, ids: Tensor, cache: Any) -> tuple[Tensor, Cache]:
        """The next token (R,) of every row to logits (R, V) and the longer cache, which replaces the one given."""
        ...

    def score(
        self,
        input_ids: Tensor,
        input_mask: Tensor,
        target_ids: Tensor,
        *,
        prepared: Prepared,
        rows: Rows,
        recompute: bool = False,
    ) -> Tensor:
        """Logits (R, O, V) of every target token in one teacher-forced pass without a cache.

        Args:
            input_ids: (R, N), padded on either side.
            target_ids: (R, O), padded on the right; the logits of padding mean nothing.
            recompute: keep each block's inputs only and compute the rest again in the backward pass.
        """
        ...
