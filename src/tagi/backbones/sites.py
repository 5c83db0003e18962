"""The small protocol that a language model fulfils to wear a task adapter.

Everything that TAGI needs of a backbone stands here, so that the generator, fusion, adapters and decoding
know nothing of T5. Adapters and instruction memory arrive as arguments; caches leave as return values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from tagi.backbones.cache import DecoderContext, DecoderMemory, History
from tagi.backbones.rows import Rows
from tagi.config import ModuleKind

AttentionKind = Literal["encoder.self", "decoder.self", "decoder.cross"]
FeedForwardKind = Literal["encoder.feed_forward", "decoder.feed_forward"]


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place that can wear a generated module.

    That is LoRA at an attention's projection (q, v), a prefix before a self-attention's keys and values, or a
    bottleneck adapter behind a feed-forward layer.
    """

    kind: AttentionKind | FeedForwardKind
    layer: int
    place: Literal["q", "v", "prefix", "bottleneck"]

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
    whole: Tensor | None = None
    """(out, in): W + ΔW of a single task's LoRA, where it was added up beforehand."""


Modules = Mapping[Site, Factors]


AfterSelfAttention = Callable[[int, Tensor], Tensor]
"""Called with the block's number and the hidden states (R, N, D) after its self-attention sublayer."""


class Backbone(Protocol):
    """An encoder-decoder that wears adapters given as arguments."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    def sites(self, kind: ModuleKind = "lora") -> tuple[Site, ...]:
        """Every place for a module of that kind, in a fixed order."""
        ...

    def site_shape(self, site: Site) -> tuple[int, int]:
        """(in, out) widths of a site's two matrices."""
        ...

    def site_weights(self) -> Mapping[Site, Tensor]:
        """The projection matrix (out, in) of every site of LoRA."""
        ...

    def encode(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        modules: Modules,
        rows: Rows,
        after_self_attention: AfterSelfAttention | None = None,
    ) -> Tensor:
        """Token ids (R, N) and mask (R, N) to hidden states (R, N, D)."""
        ...

    def project_memory(self, hidden: Tensor, mask: Tensor, *, modules: Modules) -> DecoderMemory:
        """Encoded instructions (T, S, D) to the decoder's cross-attention keys and values."""
        ...

    def context(
        self, hidden: Tensor, mask: Tensor, *, modules: Modules, rows: Rows, memory: DecoderMemory | None
    ) -> DecoderContext:
        """Encoded inputs (R, N, D) to what the decoder attends to."""
        ...

    def decode(
        self, ids: Tensor, context: DecoderContext, *, modules: Modules, rows: Rows, past: History | None = None
    ) -> tuple[Tensor, History]:
        """Decoder ids (R, O) after `past` to logits (R, O, vocabulary) and the longer past."""
        ...
