"""The protocol that a language model fulfils, the only thing that the rest knows of one.

Task adapters and encoded instructions arrive as arguments, caches leave as return values. Masks are bool, True for a
token. Shapes: see `tagi.backbones.rows`; V is the vocabulary, E the width of the token embeddings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from torch import Tensor, nn

from tagi.backbones import lora
from tagi.backbones.encoded import Attended, EncodedInstruction, nothing, stack_attended
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Modules, Site
from tagi.config import ModuleKind, Target


class Fuse(Protocol):
    """What an encoder adds after the self-attention of its blocks (Eq. 1), ready for T tasks."""

    def __call__(self, block: int, x_RND: Tensor, rows: Rows) -> Tensor:
        """The hidden states of a block, fused with each row's instruction."""
        ...

    def select(self, index: Tensor) -> "Fuse":
        """That of some tasks, in the order of `index`."""
        ...

    def stack(self, others: Sequence[Any]) -> "Fuse":
        """These tasks, then the others'."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """T tasks ready for inputs: the modules that their rows run with, what they attend to, what the encoder fuses."""

    tasks: int
    modules: Modules
    attended: Attended | None = None
    fuse: Fuse | None = None

    def select(self, index: Tensor) -> "Prepared":
        """Some tasks, in the order of `index`."""
        attended = None if self.attended is None else self.attended.select(index)
        fuse = None if self.fuse is None else self.fuse.select(index)
        return Prepared(index.numel(), lora.select(self.modules, index), attended, fuse)

    @staticmethod
    def stack(each: Sequence["Prepared"]) -> "Prepared":
        """All tasks, one after another; each tensor is copied once.

        Raises:
            ValueError: adapters of different sites or scales.
        """
        attended = stack_attended([(one.attended, one.tasks) for one in each])
        fuses = [one.fuse for one in each if one.fuse is not None]
        fuse = fuses[0].stack(fuses[1:]) if fuses else None
        return Prepared(sum(one.tasks for one in each), lora.stack([one.modules for one in each]), attended, fuse)

    def put(self, places: Tensor, other: "Prepared") -> "Prepared":
        """The other's tasks in the places (C,) of some of these, in the same tensors while its instructions fit.

        Raises:
            ValueError: adapters of different sites or scales.
        """
        lora.put(self.modules, places, other.modules)
        attended, theirs = self.attended, other.attended
        if attended is None and theirs is not None:
            attended = nothing(theirs, self.tasks)
        if attended is not None:
            attended = attended.put(places, nothing(attended, other.tasks) if theirs is None else theirs)
        return replace(self, attended=attended)

    def encoder_done(self) -> "Prepared":
        """Without what only the reading of inputs needs."""
        return replace(self, fuse=None)


class Cache(Protocol):
    """What rows have read so far; a value, continued once only."""

    @property
    def rows(self) -> Rows:
        """Which task each row belongs to."""
        ...

    def select(self, index: Tensor) -> Self:
        """Some rows (C,), in that order, some perhaps more than once."""
        ...

    def reordered(self, index: Tensor) -> Self:
        """Every row goes on from another one of the same input, (R,), as beams do."""
        ...

    def stack(self, other: Any, prepared: Prepared, rows: Rows, room: int) -> Self:
        """These rows, then the other's, which run on with `prepared`, with room for so many tokens more."""
        ...

    def put(self, places: Tensor, other: Any, prepared: Prepared, rows: Rows, room: int) -> Self:
        """The other's rows in the places (C,) of some of these; all run on with `prepared`."""
        ...

    def given(self, prepared: Prepared, rows: Rows) -> Self:
        """The same rows, which run on with the same tasks laid out otherwise."""
        ...


class Reader(Protocol):
    """What reads instructions."""

    def read(
        self, ids: Tensor, mask: Tensor, *, states: bool = False, checkpointing: bool = False
    ) -> EncodedInstruction:
        """One pass over instructions, ids and mask (T, S), with the states that projections read if they are asked for.

        Raises:
            ValueError: states of an encoder.
        """
        ...


class Backbone(Protocol):
    """A language model that runs with task adapters given as arguments.

    What reads tokens raises an `InputError` where there are more of them than the model has positions.
    """

    @property
    def shape(self) -> Any:
        """Its architecture, a config of its family."""
        ...

    @property
    def family(self) -> str:
        """What a person calls it."""
        ...

    @property
    def has_encoder(self) -> bool:
        """Whether inputs and instructions are encoded apart from the answer, each as a text of its own."""
        ...

    @property
    def d_model(self) -> int:
        """Width D of the residual stream."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Tokens of instruction, input and answer together, at most; None where there is no such bound."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens any of which ends an answer."""
        ...

    @property
    def embedding(self) -> nn.Embedding:
        """Token embeddings (V, E)."""
        ...

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Modules of its layers that run whole, one after another: what processes share one by one."""
        ...

    def sites(self, kind: ModuleKind = "lora", targets: tuple[Target, ...] = ("q", "v")) -> tuple[Site, ...]:
        """Every place for a module of that kind, in a fixed order; `targets` are the projections that LoRA adapts.

        Raises:
            ConfigError: a target module that this model has not.
        """
        ...

    def site_shape(self, site: Site) -> tuple[int, int]:
        """(in, out) widths of a site's two matrices, A (r, in) and B (out, r)."""
        ...

    def site_weights(self) -> Mapping[Site, Tensor]:
        """The projection matrix (out, in) of every site of LoRA."""
        ...

    def state(self, site: Site) -> int | None:
        """Which of an instruction's states (T, S, P, D) the projection of a site reads; None where it reads none of
        them, as all of an encoder-decoder."""
        ...

    def site_name(self, site: Site) -> str:
        """What `transformers` calls the module of a site."""
        ...

    def reader(self) -> nn.Module:
        """A `Reader` of its own that starts as a copy of this model and shares no tensor with it."""
        ...

    def read(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        modules: Modules | None = None,
        states: bool = False,
        checkpointing: bool = False,
    ) -> EncodedInstruction:
        """One pass over instructions, ids and mask (T, S): without adapters, or every task with its own; with the
        states that projections read if they are asked for.

        Raises:
            ValueError: states of an encoder.
        """
        ...

    def prepare(
        self, encoded: EncodedInstruction, modules: Modules, *, attends: bool = True, fuse: Fuse | None = None
    ) -> Prepared:
        """Tasks with their modules and, where inputs attend to them, their instructions.

        Raises:
            ValueError: something to fuse, and no encoder.
        """
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
        owner: Tensor | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Logits (R, O, V) of every target token in one teacher-forced pass without a cache.

        Args:
            input_ids: (R, N), padded on either side.
            target_ids: (R, O), padded on the right; the logits of padding mean nothing.
            owner: (C,) the input of each of C targets (C, O), where an input has several or none; gives (C, O, V).
            checkpointing: keep each block's inputs only and compute the rest again in the backward pass.
        """
        ...

    def attention(
        self, input_ids: Tensor, input_mask: Tensor, target_ids: Tensor, *, prepared: Prepared, rows: Rows
    ) -> Tensor | None:
        """How much every target token's query attends to each token of its task's instruction, (R, O, S): the mean
        over blocks and heads; None where blocks do not attend to the instruction as it is read.

        A row's weights add up to less than 1, for it attends to its own tokens too. Arguments as of `score`.
        """
        ...
