"""What the trainer knows of a training stage, and the stage that learns from tasks (§3.2.4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from tagi.data.collate import Batch, Collator
from tagi.data.mixture import Mixture
from tagi.infer.engine import teacher_forced
from tagi.losses import Loss, cross_entropy
from tagi.model.tagi import Output, TagiModel

Metrics = dict[str, Loss]


class Stage(Protocol):
    """One training stage: deterministic batches and a loss; the trainer never learns which stage it runs."""

    @property
    def model(self) -> TagiModel:
        """The model that is trained, unwrapped."""
        ...

    def batch(self, index: int) -> Batch:
        """Batch number `index`, a pure function of the stage's seed and the number."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Loss, Metrics]:
        """The objective as sum and count of target tokens, and every term apart.

        `model` is the stage's model, wrapped by the trainer where several processes share the work.
        """
        ...

    @property
    def write(self) -> Callable[[Path], None]:
        """Writes the checkpoint's files into a folder that exists."""
        ...

    @property
    def read(self) -> Callable[[Path], None]:
        """Puts the trained tensors of a checkpoint back into the model."""
        ...


class Term(NamedTuple):
    """One summand of Eq. 6: weight · loss(output, batch)."""

    name: str
    weight: float
    loss: Callable[[Output, Batch], Loss]


def label_loss(output: Output, batch: Batch) -> Loss:
    """L_pred of Eqs. 3 and 6: cross-entropy of the target tokens."""
    return cross_entropy(output.logits, batch.labels)


LABELS = (Term("ce", 1.0, label_loss),)


@dataclass(frozen=True)
class ModelStage:
    """A stage whose loss is a weighted sum of terms over one forward pass of the student (Eq. 6)."""

    model: TagiModel
    batches: Callable[[int], Batch]
    write: Callable[[Path], None]
    read: Callable[[Path], None]
    terms: Sequence[Term] = LABELS

    def batch(self, index: int) -> Batch:
        return self.batches(index)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Loss, Metrics]:
        output = teacher_forced(model, self.model.backbone.shape, batch)
        metrics = {term.name: term.loss(output, batch) for term in self.terms}
        count = metrics[self.terms[0].name].count
        weighted = [term.weight * metrics[term.name].total for term in self.terms]
        return Loss(torch.stack(weighted).sum(), count), metrics


def task_batches(mixture: Mixture, collator: Collator) -> Callable[[int], Batch]:
    """Batches of a task-grouped mixture, rendered and tokenized."""
    return lambda index: collator(mixture.batch(index))
