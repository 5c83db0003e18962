"""Given answers, scored: what rank classification chooses by (§4.1, P3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from sys import maxsize

import torch
from torch import Tensor

from tagi.backbones.base import Backbone, Prepared
from tagi.backbones.rows import Rows
from tagi.config import RankNorm
from tagi.data.collate import pad
from tagi.infer.running import averaged

ROWS = 64
"""Encoded inputs of a batch, at most, unless a single input has more prompts."""
SCORED_TOGETHER = 512
"""Tokens of an answer whose scores over the whole vocabulary are held at once."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token that is given, its log-likelihood in nats, and the likeliest tokens in its place, best first."""

    token: int
    score: float
    likeliest: tuple[tuple[int, float], ...]


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
    members = [one for each in prompts for one in each]
    its = [answer for each, own in zip(prompts, answers, strict=True) for _ in each for answer in own]
    counts = torch.tensor([len(own) for each, own in zip(prompts, answers, strict=True) for _ in each])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    likelihood, real, _ = _likelihoods(backbone, prepared, Rows(1, len(members)), members, its, owner)
    total, tokens = (likelihood * real).sum(1), real.sum(1)
    values = (total / tokens if norm == "mean" else total).cpu()
    parts = values.split([len(each) * len(own) for each, own in zip(prompts, answers, strict=True)])
    return [
        averaged(part.view(len(each), -1), len(each))[0].tolist() for part, each in zip(parts, prompts, strict=True)
    ]


@torch.inference_mode()
def continuations(
    backbone: Backbone,
    prepared: Prepared,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    tasks: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> list[list[tuple[float, bool]]]:
    """Log-likelihood in nats of every answer to every prompt, and whether greedy search would write it.

    Nothing is put behind an answer; a batch mixes tasks.

    Args:
        prompts: token ids.
        answers: token ids of every prompt's answers.
        tasks: which of the prepared tasks each prompt belongs to.
        progress: called with how many answers more are scored.
    """
    found: list[list[tuple[float, bool]]] = [[] for _ in prompts]
    before = 0 if prepared.attended is None else int(prepared.attended.start.max())
    room = maxsize if backbone.max_positions is None else backbone.max_positions - before
    for batch in _fitting(prompts, answers, room):
        here = sorted({tasks[i] for i in batch})
        places = torch.tensor([here.index(tasks[i]) for i in batch])
        device = backbone.embedding.weight.device
        some = prepared if len(here) == prepared.tasks else prepared.select(torch.tensor(here, device=device))
        rows = Rows.of(places.to(device), some.tasks)
        owner = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(answers[i]) for i in batch]))
        its = [answer for i in batch for answer in answers[i]]
        likelihood, real, greedy = _likelihoods(backbone, some, rows, [prompts[i] for i in batch], its, owner)
        pairs = zip((likelihood * real).sum(1).tolist(), (greedy | ~real).all(1).tolist(), strict=True)
        for i, pair in zip(owner.tolist(), pairs, strict=True):
            found[batch[i]].append(pair)
        if progress is not None:
            progress(len(its))
    return found


def _fitting(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], room: int
) -> Iterator[list[int]]:
    """Numbers of prompts of similar length: no more than all scores of their answers can be held of at once, and none
    whose answers, padded to the longest, would need more positions than there is room for."""
    batch, count, longest = list[int](), 0, 0
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        count, longest = count + len(answers[i]), max(longest, *map(len, answers[i]))
        many = len(batch) == ROWS or count * longest > SCORED_TOGETHER
        if batch and (many or len(prompts[i]) + longest > room + 1):  # the last token of an answer is not read
            yield batch
            batch, count, longest = [], len(answers[i]), max(map(len, answers[i]))
        batch.append(i)
    if batch:
        yield batch


def likeliest(choices: Sequence[str], scores: Sequence[float]) -> str:
    """The choice of the highest score, the first of equal ones."""
    return choices[max(range(len(scores)), key=scores.__getitem__)]


def token_scores(
    backbone: Backbone, prepared: Prepared, prompt: Sequence[int], answer: Sequence[int], most: int
) -> list[TokenScore]:
    """Every token of one answer to one prompt, each with so many of the likeliest in its place."""
    size = len(answer) or 1 if backbone.has_encoder else SCORED_TOGETHER  # an encoder reads the prompt and no more
    return [
        one
        for start in range(0, len(answer), size)
        for one in _token_scores(backbone, prepared, [*prompt, *answer[:start]], answer[start : start + size], most)
    ]


def _token_scores(
    backbone: Backbone, prepared: Prepared, prompt: Sequence[int], answer: Sequence[int], most: int
) -> list[TokenScore]:
    device = backbone.embedding.weight.device
    ids, target_ids = (torch.tensor([one], device=device) for one in (prompt, answer))
    mask = torch.ones_like(ids, dtype=torch.bool)
    logits = backbone.score(ids, mask, target_ids, prepared=prepared, rows=Rows(1, 1))
    likelihood = logits[0].float().log_softmax(-1)
    own = likelihood.gather(-1, target_ids[0, :, None])[:, 0].tolist()
    best = likelihood.topk(most)
    pairs = (tuple(zip(*each, strict=True)) for each in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return [TokenScore(*each) for each in zip(answer, own, pairs, strict=True)]


def _likelihoods(
    backbone: Backbone,
    prepared: Prepared,
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    owner: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the answers' tokens, (A, O) each: log-likelihood, whether it is a real one, whether it is the likeliest;
    `owner` (A,) names each answer's prompt."""
    ids, mask = pad(prompts)
    target_ids, real = pad(answers)
    device = backbone.embedding.weight.device
    ids, mask, target_ids, real, owner = (x.to(device) for x in (ids, mask, target_ids, real, owner))
    logits = backbone.score(ids, mask, target_ids, prepared=prepared, rows=rows, owner=owner)
    likelihood = logits.float().log_softmax(-1).gather(-1, target_ids[..., None])[..., 0]
    return likelihood, real, logits.argmax(-1) == target_ids
