"""Where modules can be generated for a language model, and what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
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

    @property
    def tasks(self) -> int:
        """T."""
        return self.a.shape[0]

    @property
    def rank(self) -> int:
        """Of its product; of a prefix its tokens, of a bottleneck adapter its width."""
        return self.a.shape[1]

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The tensors that differ between tasks."""
        return self.a, self.b

    def with_own(self, own: Sequence[Tensor]) -> Self:
        """The same of other tasks."""
        a, b = own
        return replace(self, a=a, b=b, merged=None)


@dataclass(frozen=True, slots=True)
class StateFactors:
    """LoRA of one site for T tasks of which only u is a task's own: ΔW = scale · (B₀ A₀ + W Uᵀ A), W the projection.

    So a projection answers as if u had been added to its input in proportion to A x. What two tasks differ in are r
    vectors of the input's width, which all projections that read the same state share.
    """

    shared_a: Tensor  # (r₀, in)
    shared_b: Tensor  # (out, r₀)
    a: Tensor  # (r, in)
    u: Tensor  # (T, r, in)
    scale: float

    @property
    def tasks(self) -> int:
        """T."""
        return self.u.shape[0]

    @property
    def rank(self) -> int:
        """Of its product."""
        return self.shared_a.shape[0] + self.a.shape[0]

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The tensors that differ between tasks."""
        return (self.u,)

    def with_own(self, own: Sequence[Tensor]) -> Self:
        """The same of other tasks."""
        (u,) = own
        return replace(self, u=u)

    def factors(self, weight_JI: Tensor) -> Factors:
        """The same as A and B of each task."""
        a = torch.cat((self.shared_a, self.a)).expand(self.tasks, -1, -1)
        shared_b = self.shared_b.expand(self.tasks, -1, -1)
        return Factors(a, torch.cat((shared_b, weight_JI @ self.u.mT), dim=2), self.scale)


Modules = Mapping[Site, Factors | StateFactors]
