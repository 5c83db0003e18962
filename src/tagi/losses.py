"""The paper's losses as pure functions of tensors, each returning a sum and a count."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss as a sum over tokens and their number, so that accumulation changes nothing."""

    total: Tensor
    count: Tensor


def cross_entropy(logits_ROV: Tensor, labels_RO: Tensor) -> Loss:
    """L_pred = -log P(c | b), summed over target tokens in fp32 or wider (Eq. 3; labels of -100 ignored)."""
    wide = torch.promote_types(logits_ROV.dtype, torch.float32)
    logits = logits_ROV.flatten(0, 1).to(wide)
    total = F.cross_entropy(logits, labels_RO.flatten(), ignore_index=IGNORE, reduction="sum")
    return Loss(total, valid_positions(labels_RO).sum())


def valid_positions(labels_RO: Tensor) -> Tensor:
    """Where a target token is, (R, O)."""
    return labels_RO != IGNORE
