"""What the trainer knows of a training stage, and the stage that trains a student (§3.2.4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tagi.backbones.encoded import EncodedInstruction
from tagi.data.collate import Batch
from tagi.infer.engine import teacher_forced
from tagi.losses import Loss, cross_entropy, valid_positions
from tagi.model.tagi import Output, TagiModel

Metrics = dict[str, Loss]
Parts = Mapping[str, Sequence[nn.Parameter]]
"""Trained parameters by the part of the model that they belong to."""


@dataclass(frozen=True)
class Stage:
    """One training stage: deterministic batches and a loss; the trainer never learns which stage it runs.

    The objective is the sum over terms of weight · total / count, the counts taken over everything that
    one optimizer step sees, in however many batches and processes.

    A stage may train many independent models in lock-step (`groups`): the first dimension of every parameter,
    total and count then runs over them, and each is clipped by its own gradient norm.
    """

    model: nn.Module
    """The model that is trained, unwrapped."""
    parts: Parts
    """What is trained; everything else is frozen."""
    batch: Callable[[int], Batch]
    """Batch by number, a pure function of the stage's seed and the number."""
    write: Callable[[Path], None]
    """Writes the checkpoint's files into a folder that exists."""
    read: Callable[[Path], None]
    """Puts the trained tensors of a checkpoint back into the model."""
    check: Callable[[Path], object] = lambda folder: None
    """Refuses a run's folder whose checkpoints another run wrote."""
    groups: int | None = None
    """Number of independent models that train in lock-step; None for one ordinary model."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of every term of the objective (λ1 and λ2 of Eq. 6)."""
        return {"ce": 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each term's sum over this batch is divided by, known before the forward pass."""
        return {"ce": target_tokens(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Metrics:
        """Every term as sum and count; `model` is the stage's, wrapped where several processes share the work."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of Eq. 6: weight · loss(output, batch)."""

    name: str
    weight: float
    loss: Callable[[Output, Batch], Loss]
    count: Callable[[Batch], Tensor]


def target_tokens(batch: Batch) -> Tensor:
    """Number of target tokens."""
    return valid_positions(batch.labels).sum()


LABELS = (Term("ce", 1.0, lambda output, batch: cross_entropy(output.logits, batch.labels), target_tokens),)
"""L_pred of Eqs. 3 and 6."""


@dataclass(frozen=True)
class ModelStage(Stage):
    """A stage whose objective is a weighted sum of terms over one forward pass of the student (Eq. 6)."""

    model: TagiModel
    terms: Sequence[Term] = LABELS
    encode: Callable[[Batch], EncodedInstruction | None] | None = None
    """Reads a batch's instructions where that needs no gradient; without it the model does, in its own forward."""
    checkpointing: bool = False
    """Activation checkpointing: see `Backbone.score`."""

    @property
    def weights(self) -> Mapping[str, float]:
        return {term.name: term.weight for term in self.terms}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {term.name: term.count(batch) for term in self.terms}

    def loss(self, model: nn.Module, batch: Batch) -> Metrics:
        encoded = self.encode(batch) if self.encode is not None else None
        output = teacher_forced(model, batch, encoded, checkpointing=self.checkpointing)
        return {term.name: term.loss(output, batch) for term in self.terms}
