"""The paper's losses as pure functions of tensors, each returning a sum and a count."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss as a sum over tokens and their number, so that accumulation changes nothing."""

    total: Tensor
    count: Tensor


def cross_entropy(logits_ROV: Tensor, labels_RO: Tensor) -> Loss:
    """L_pred = -log P(c | b), summed over target tokens (Eq. 3; labels of -100 are ignored)."""
    total = F.cross_entropy(logits_ROV.flatten(0, 1).float(), labels_RO.flatten(), ignore_index=IGNORE, reduction="sum")
    return Loss(total, (labels_RO != IGNORE).sum())
