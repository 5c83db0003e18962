"""Given answers, scored: what rank classification chooses by (§4.1, P3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tagi.backbones.base import Backbone, Prepared
from tagi.backbones.rows import Rows
from tagi.config import RankNorm
from tagi.data.collate import pad
from tagi.infer.running import averaged

ROWS = 64
"""Encoded inputs of a batch, at most, unless a single input has more prompts."""


def score(
    backbone: Backbone,
    prepared: Prepared,
    prompts: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[Sequence[Sequence[int]]],
    norm: RankNorm,
) -> list[list[float]]:
    """Log-likelihood of every choice of every input of one task, in nats.

    All choices of an input share one pass over it. Where a method averages predictions, an input has several prompts,
    and scores are `averaged` over them.

    Args:
        prompts: token ids of every input's prompts.
        answers: token ids of every input's choices.
    """
    scores: list[list[float]] = [[] for _ in prompts]
    for batch in _batches(prompts):
        found = _score(backbone, prepared, [prompts[i] for i in batch], [answers[i] for i in batch], norm)
        for i, values in zip(batch, found, strict=True):
            scores[i] = values
    return scores


def _batches(prompts: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Numbers of inputs of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: max(map(len, prompts[i])))
    size = max(ROWS // max((len(each) for each in prompts), default=1), 1)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _score(
    backbone: Backbone,
    prepared: Prepared,
    prompts: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[Sequence[Sequence[int]]],
    norm: RankNorm,
) -> list[list[float]]:
    """Scores of one batch: of every input, of every choice, the mean over the input's prompts."""
    ids, mask = pad([one for each in prompts for one in each])
    pairs = [(member, answer) for each, its in zip(prompts, answers, strict=True) for member in each for answer in its]
    counts = torch.tensor([len(its) for each, its in zip(prompts, answers, strict=True) for _ in each])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    target_ids, real = pad([answer for _, answer in pairs])
    device = backbone.embedding.weight.device
    ids, mask, target_ids, real, owner = (x.to(device) for x in (ids, mask, target_ids, real, owner))
    rows = Rows(1, len(ids))
    logits = backbone.score(ids, mask, target_ids, prepared=prepared, rows=rows, owner=owner)
    likelihood = logits.float().log_softmax(-1).gather(-1, target_ids[..., None])[..., 0]
    total, tokens = (likelihood * real).sum(1), real.sum(1)
    values = (total / tokens if norm == "mean" else total).cpu()
    return _by_input(values, [len(each) for each in prompts], [len(its) for its in answers])


def _by_input(values: Tensor, members: Sequence[int], choices: Sequence[int]) -> list[list[float]]:
    parts = values.split([m * c for m, c in zip(members, choices, strict=True)])
    return [averaged(part.view(m, -1), m)[0].tolist() for part, m in zip(parts, members, strict=True)]
