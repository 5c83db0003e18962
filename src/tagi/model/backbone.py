"""The small protocol that a language model fulfils to wear a task adapter.

Everything that TAGI needs of a backbone stands here, so that the generator, fusion, adapters and decoding
know nothing of T5. Adapters and instruction memory arrive as arguments; caches leave as return values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from tagi.model.rows import Rows

AttentionKind = Literal["encoder.self", "decoder.self", "decoder.cross"]


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One attention projection that can wear a LoRA."""

    kind: AttentionKind
    layer: int
    projection: Literal["q", "v"]

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}.{self.projection}"


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """LoRA of one site for T tasks: ΔW = scale · B A (the paper writes A B, transposed)."""

    a: Tensor  # (T, r, in)
    b: Tensor  # (T, out, r)
    scale: float


Lora = Mapping[Site, LoraFactors]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Keys and values of one attention, (rows or tasks, H, L, K) each."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class DecoderMemory:
    """The encoded instruction as the decoder's cross-attention sees it: once per task, shared by its rows."""

    layers: tuple[KeyValue, ...]  # (T, H, S, K)
    bias: Tensor  # (T, 1, 1, S), 0 where a token is and the lowest float where padding is


@dataclass(frozen=True, slots=True)
class DecoderContext:
    """Everything the decoder attends to besides its own past."""

    layers: tuple[KeyValue, ...]  # (R, H, N, K)
    bias: Tensor  # (R, 1, 1, N)
    memory: DecoderMemory | None


Past = tuple[KeyValue, ...]
AfterSelfAttention = Callable[[int, Tensor], Tensor]
"""Called with the block's number and the hidden states (R, N, D) after its self-attention sublayer."""


class Backbone(Protocol):
    """An encoder-decoder that wears adapters given as arguments."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    def sites(self) -> tuple[Site, ...]:
        """Every projection that a LoRA may adapt, in a fixed order."""
        ...

    def site_shape(self, site: Site) -> tuple[int, int]:
        """(in, out) widths of a site's projection."""
        ...

    def encode(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        lora: Lora,
        rows: Rows,
        after_self_attention: AfterSelfAttention | None = None,
    ) -> Tensor:
        """Token ids (R, N) and mask (R, N) to hidden states (R, N, D)."""
        ...

    def project_memory(self, hidden: Tensor, mask: Tensor, *, lora: Lora) -> DecoderMemory:
        """Encoded instructions (T, S, D) to the decoder's cross-attention keys and values."""
        ...

    def context(
        self, hidden: Tensor, mask: Tensor, *, lora: Lora, rows: Rows, memory: DecoderMemory | None
    ) -> DecoderContext:
        """Encoded inputs (R, N, D) to what the decoder attends to."""
        ...

    def decode(
        self, ids: Tensor, context: DecoderContext, *, lora: Lora, rows: Rows, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Decoder ids (R, O) after `past` to logits (R, O, vocabulary) and the longer past."""
        ...
