"""Where modules can be generated for a language model, and what they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tagi.config import Target

SiteKind = Literal["encoder.self", "decoder.self", "decoder.cross", "encoder.feed_forward", "decoder.feed_forward"]


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place for a generated module: LoRA at a projection, a prefix before a self-attention's keys and values, or a
    bottleneck adapter behind a feed-forward layer."""

    kind: SiteKind
    layer: int
    place: Target | Literal["prefix", "bottleneck"]

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}.{self.place}"


@dataclass(frozen=True, slots=True)
class Factors:
    """The module of one site for T tasks, two matrices whatever its kind.

    LoRA is ΔW = scale · B A (the paper writes A B, transposed); a bottleneck adapter has its activation between the
    two; a prefix of r tokens has its keys in A and its values in the columns of B.
    """

    a: Tensor  # (T, r, in)
    b: Tensor  # (T, out, r)
    scale: float
    merged: Tensor | None = None
    """(out, in): W + ΔW of a single task's LoRA, where it was added up beforehand."""


Modules = Mapping[Site, Factors]
