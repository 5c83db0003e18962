"""The paper's losses as pure functions of tensors, each returning a sum and a count.

Shape suffixes: R rows, O target tokens, V vocabulary, K tokens that a teacher's distribution names, N groups
(independent models, or tasks), r LoRA rank, I and J input and output width.
"""

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


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    """A teacher's distribution at every target position: log-probabilities of K tokens and of all others together."""

    log_p: Tensor  # (R, O, K)
    index: Tensor | None = None  # (R, O, K) the tokens; None means the vocabulary in order: tokens 0 to K - 1
    tail: Tensor | None = None  # (R, O) log-probability of the tokens not in `index`

    def to(self, device: torch.device) -> "TokenDistribution":
        """The same distribution on another device."""
        index = None if self.index is None else self.index.to(device)
        return TokenDistribution(self.log_p.to(device), index, None if self.tail is None else self.tail.to(device))


def cross_entropy(logits_ROV: Tensor, labels_RO: Tensor) -> Loss:
    """L_pred = -log P(c | b), summed over target tokens in fp32 or wider (Eq. 3; labels of -100 ignored)."""
    return Loss(_token_losses(logits_ROV, labels_RO, "sum"), valid_positions(labels_RO).sum())


def group_cross_entropy(logits_ROV: Tensor, labels_RO: Tensor, lane_R: Tensor, groups: int) -> Loss:
    """L_pred of each group_index's own rows: sums and counts (N,)."""
    rows = _token_losses(logits_ROV, labels_RO, "none").view(labels_RO.shape).sum(1)
    return Loss(rows.new_zeros(groups).index_add(0, lane_R, rows), group_tokens(labels_RO, lane_R, groups))


def group_tokens(labels_RO: Tensor, lane_R: Tensor, groups: int) -> Tensor:
    """Number of target tokens in each group_index, (N,)."""
    tokens = valid_positions(labels_RO).sum(1)
    return tokens.new_zeros(groups).index_add(0, lane_R, tokens)


def distillation(student_ROV: Tensor, teacher: TokenDistribution, valid_RO: Tensor, temperature: float) -> Loss:
    """L_kl = T² · KL(teacher || student) at temperature T over target tokens (Eq. 5).

    `teacher` is at temperature T already. With a tail, its tokens and the student's mass on them count as one
    event, which is a lower bound of the whole divergence and equals it where nothing is left out.
    """
    log_q = (_wide(student_ROV) / temperature).log_softmax(-1)
    tokens = teacher.log_p.shape[-1]  # fewer than V where only the student has rows that no token uses
    named = log_q[..., :tokens] if teacher.index is None else log_q.gather(-1, teacher.index)
    divergence = _expected_log_ratio(teacher.log_p, named).sum(-1)
    if teacher.tail is not None and teacher.index is not None:
        others = log_q.scatter(-1, teacher.index, float("-inf")).logsumexp(-1)
        divergence = divergence + _expected_log_ratio(teacher.tail, others)
    return Loss((divergence * valid_RO).sum() * temperature**2, valid_RO.sum())


def soften(logits_ROV: Tensor, temperature: float) -> TokenDistribution:
    """A teacher's distribution over the whole vocabulary at temperature T."""
    return TokenDistribution((_wide(logits_ROV) / temperature).log_softmax(-1))


def truncate(whole: TokenDistribution, k: int) -> TokenDistribution:
    """The k most likely tokens and the mass of the rest; all of the vocabulary stays as it is."""
    if k >= whole.log_p.shape[-1]:
        return whole
    log_p, index = whole.log_p.topk(k, dim=-1)
    return TokenDistribution(log_p, index, whole.log_p.scatter(-1, index, float("-inf")).logsumexp(-1))


def product_distance(a_NrI: Tensor, b_NJr: Tensor, other_a_NrI: Tensor, other_b_NJr: Tensor) -> Tensor:
    """‖B A - B' A'‖² through r × r Gram matrices, never forming a J × I product, (N,) in fp32 or wider (Eq. 4)."""
    a, b, other_a, other_b = (_wide(x) for x in (a_NrI, b_NJr, other_a_NrI, other_b_NJr))
    own, theirs = product_energy(a, b), product_energy(other_a, other_b)
    cross = ((b.transpose(-1, -2) @ other_b) * (a @ other_a.transpose(-1, -2))).sum((-1, -2))
    return own - 2.0 * cross + theirs


def product_energy(a_NrI: Tensor, b_NJr: Tensor) -> Tensor:
    """‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ), (N,) in fp32 or wider."""
    a, b = _wide(a_NrI), _wide(b_NJr)
    return ((b.transpose(-1, -2) @ b) * (a @ a.transpose(-1, -2))).sum((-1, -2))


def factor_distance(x_NJr: Tensor, other_NJr: Tensor) -> Tensor:
    """‖X - X'‖² of one LoRA factor, (N,) in fp32 or wider (Eq. 4, factor form)."""
    return (_wide(x_NJr) - _wide(other_NJr)).square().sum((-1, -2))


def valid_positions(labels_RO: Tensor) -> Tensor:
    """Where a target token is, (R, O)."""
    return labels_RO != IGNORE


def _expected_log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p · (log p - log q), and 0 where p is 0."""
    p = log_p.exp()
    return p * (log_p - log_q).masked_fill(p == 0, 0.0)


def _token_losses(logits_ROV: Tensor, labels_RO: Tensor, reduction: str) -> Tensor:
    """-log P of every target token, 0 where there is none, (R·O,) or summed."""
    logits = _wide(logits_ROV).flatten(0, 1)
    return F.cross_entropy(logits, labels_RO.flatten(), ignore_index=IGNORE, reduction=reduction)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
