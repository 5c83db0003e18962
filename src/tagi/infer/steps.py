"""One step of the decoder for a running batch: what it reads, and the plain way to do it. Shapes: see `rows.py`."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tagi.backbones.cache import DecoderContext, History, Past
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Modules


@dataclass(frozen=True, slots=True)
class StepInput:
    """Everything that the decoder's next step reads."""

    last: Tensor  # (R, 1)
    context: DecoderContext
    modules: Modules
    rows: Rows
    past: History | None
    """None before the first step."""

    def select(self, index: Tensor) -> "StepInput":
        """What some rows read, in the order of `index`, beside the tasks of all."""
        past = None if self.past is None else self.past.select(index)
        return StepInput(self.last[index], self.context.select(index), self.modules, self.rows.select(index), past)


class Steps(Protocol):
    """How the steps of one running batch are done."""

    def size(self, requests: int) -> int:
        """Requests that a batch of so many has places for."""
        ...

    def placed(self, read: StepInput, each: int) -> StepInput:
        """Called when requests of `each` rows have come or gone: the same, perhaps with empty rows and places behind.

        What was placed before may be overwritten.
        """
        ...

    def first(self, read: StepInput, tokens: int) -> tuple[Tensor, History]:
        """Logits (R, 1, V) of rows that have no past, and their past with room for so many tokens more."""
        ...

    def next(self, read: StepInput) -> tuple[Tensor, History]:
        """Logits (R, 1, V) of rows that were placed, and their longer past."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Steps as the language model does them, whatever the shapes."""

    backbone: LanguageModel

    def size(self, requests: int) -> int:
        return requests

    def placed(self, read: StepInput, each: int) -> StepInput:
        return read

    def first(self, read: StepInput, tokens: int) -> tuple[Tensor, History]:
        logits, past = begun(self.backbone, read)
        return logits, past.with_room(tokens)

    def next(self, read: StepInput) -> tuple[Tensor, History]:
        return step(self.backbone, read)


def step(backbone: LanguageModel, read: StepInput) -> tuple[Tensor, History]:
    """Logits (R, 1, V), and the longer past."""
    return backbone.decode(read.last, read.context, modules=read.modules, rows=read.rows, past=read.past)


def begun(backbone: LanguageModel, read: StepInput) -> tuple[Tensor, Past]:
    """A step of rows that have no past."""
    logits, past = step(backbone, read)
    assert isinstance(past, Past)
    return logits, past
