"""A running batch: requests in the middle of their answers, all of as many beams and prompts.

Rows of a batch: every request has its beams, and each of them one row for every prompt that is averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tagi.backbones.base import Backbone, Cache
from tagi.data.collate import pad
from tagi.errors import InputError
from tagi.infer.search import FinishReason, Search, Step, begin
from tagi.infer.tasks import Request, TaskTable

FREED = 0.25
"""Share of a batch that must be finished before its rows are dropped though none waits: that copies what is left."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one step has settled of an answer."""

    number: int
    new: Sequence[int]
    finish_reason: FinishReason | None
    """Why the answer is complete; None while it goes on."""
    error: Exception | None = None
    """What ended it before its end: this request's alone."""

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Running:
    """Requests, how far each answer is, and what the model has read for them."""

    requests: tuple[Request, ...]
    searches: tuple[Search | None, ...]
    """None where the answer is complete; another request may take the place."""
    tasks: TaskTable
    last: Tensor  # (R,), the newest tokens
    cache: Cache
    steps: int
    """Taken since the batch began, and `began`, of each request: positions that its row had read at step 0."""
    began: tuple[int, ...]

    @property
    def open(self) -> list[int]:
        """Places of the answers that go on."""
        return [place for place, search in enumerate(self.searches) if search is not None]

    @property
    def closed(self) -> list[int]:
        """Places of the answers that are complete."""
        return [place for place, search in enumerate(self.searches) if search is None]

    @property
    def open_rows(self) -> int:
        """Rows of the answers that go on."""
        return len(self.open) * self.requests[0].rows

    def without(self, number: int) -> "Running":
        """The same, one request's answer being complete as it is."""
        pairs = zip(self.requests, self.searches, strict=True)
        return replace(self, searches=tuple(None if one.number == number else search for one, search in pairs))


def begun(backbone: Backbone, requests: Sequence[Request]) -> tuple[Running, list[Tokens]]:
    """Requests with their inputs read and the first tokens of their answers."""
    members, beams = len(requests[0].prompts), requests[0].generation.beams
    device = backbone.embedding.weight.device
    tasks = TaskTable.of(requests)
    ids, mask = (x.to(device) for x in pad([one for request in requests for one in request.prompts]))
    most = max(one.limits.max_new_tokens for one in requests)
    rows = tasks.rows(requests, members, device)
    logits, cache = backbone.begin(ids, mask, prepared=tasks.prepared, rows=rows, room=most)
    if beams > 1:
        each = torch.arange(len(ids), device=device).unflatten(0, (-1, 1, members)).expand(-1, beams, -1).flatten()
        logits, cache = logits[each], cache.select(each)
    searches = tuple(begin(one.generation, one.limits, one.seed) for one in requests)
    began = tuple(one.told + max(map(len, one.prompts)) for one in requests)
    return _advanced(Running(tuple(requests), searches, tasks, ids.new_zeros(len(logits)), cache, 0, began), logits)


def stepped(backbone: Backbone, running: Running) -> tuple[Running, list[Tokens]]:
    """One token more for every answer that goes on."""
    logits, cache = backbone.step(running.last, running.cache)
    return _advanced(replace(running, cache=cache, steps=running.steps + 1), logits)


def joined(running: Running | None, joining: Running) -> Running:
    """One batch out of two: new requests take the places of answers that are complete, if there are enough."""
    if running is None or not joining.open:
        return running or joining
    theirs = _picked(joining, joining.open)
    if len(theirs.requests) <= len(running.closed):
        return _put(running, theirs, running.closed[: len(theirs.requests)])
    ours = _picked(running, running.open)
    requests = ours.requests + theirs.requests
    tasks, device = TaskTable.of(requests), ours.last.device
    room = max(one.limits.max_new_tokens for one in requests)
    rows = tasks.rows(requests, requests[0].rows, device)
    return Running(
        requests,
        ours.searches + theirs.searches,
        tasks,
        torch.cat((ours.last, theirs.last)),
        ours.cache.stack(theirs.cache, tasks.prepared, rows, room),
        ours.steps,
        ours.began + tuple(one + theirs.steps - ours.steps for one in theirs.began),
    )


def _put(running: Running, joining: Running, places: Sequence[int]) -> Running:
    """New requests in the places of others; their tasks in the places of tasks that nobody needs any more."""
    requests, searches, began = list(running.requests), list(running.searches), list(running.began)
    each = zip(places, joining.requests, joining.searches, joining.began, strict=True)
    for place, request, search, positions in each:
        requests[place], searches[place] = request, search
        began[place] = positions + joining.steps - running.steps
    tasks = running.tasks.with_tasks(requests)
    device, rows = running.last.device, tasks.rows(requests, requests[0].rows, running.last.device)
    index = _rows_of(places, requests[0].rows, device)
    room = max(one.limits.max_new_tokens for one in joining.requests)
    cache = running.cache.put(index, joining.cache, tasks.prepared, rows, room)
    last = running.last.index_copy(0, index, joining.last)
    return Running(tuple(requests), tuple(searches), tasks, last, cache, running.steps, tuple(began))


def kept(running: Running, positions: int | None, *, awaited: bool) -> Running | None:
    """Without the answers that are complete, where that is worth its copies; None where nothing is left.

    Args:
        positions: that the model has, which no row may go beyond.
        awaited: other requests will take their places.
    """
    places = running.open
    if not places:
        return None
    finished = len(running.closed)
    full = positions is not None and max(running.began) + running.steps >= positions
    if not finished or not (full or (not awaited and finished >= FREED * len(running.requests))):
        return running
    left = _picked(running, places)
    tasks = TaskTable.of(left.requests)
    rows = tasks.rows(left.requests, left.requests[0].rows, left.last.device)
    return replace(left, tasks=tasks, cache=left.cache.given(tasks.prepared, rows))


def _advanced(running: Running, logits: Tensor) -> tuple[Running, list[Tokens]]:
    """Every answer that goes on with its next token, chosen by logits (R, V)."""
    beams, members = running.requests[0].generation.beams, len(running.requests[0].prompts)
    scores = logits.float()
    if members > 1:
        scores = averaged(scores.log_softmax(-1), members)
    best = scores.argmax(-1)
    highest, best = scores.gather(-1, best[:, None])[:, 0].tolist(), best.tolist()
    spans = [slice(place, place + beams) for place in range(0, len(best), beams)]
    found = [
        None if search is None else _chosen(search, scores[span], best[span], highest[span])
        for search, span in zip(running.searches, spans, strict=True)
    ]
    steps = [None if isinstance(one, Exception) else one for one in found]
    tokens = [token for step in steps for token in (step.tokens if step and step.tokens else [0] * beams)]
    last = running.last.new_tensor(tokens).repeat_interleave(members)
    cache = running.cache
    if any(step is not None and step.parents is not None for step in steps):
        cache = cache.reordered(_reordered(steps, beams, members).to(last.device))
    searches = tuple(None if step is None or step.finish_reason else step.search for step in steps)
    settled = [
        Tokens(one.number, (), None, step)
        if isinstance(step, Exception)
        else Tokens(one.number, step.emitted, step.finish_reason)
        for one, step in zip(running.requests, found, strict=True)
        if isinstance(step, Exception) or (step is not None and (step.emitted or step.finish_reason))
    ]
    return replace(running, searches=searches, last=last, cache=cache), settled


def _chosen(search: Search, scores: Tensor, best: Sequence[int], highest: Sequence[float]) -> Step | Exception:
    """One answer's step, or what went wrong with it; NaN and infinity are the highest of scores that hold them."""
    if not all(map(math.isfinite, highest)):
        return InputError("the model's scores are no finite numbers: its weights or the adapter are damaged")
    try:
        return search.step(scores, best)
    except Exception as error:  # whatever a stop function raises: handed over to whoever asked, the others go on
        return error


def _reordered(steps: Sequence[Step | None], beams: int, members: int) -> Tensor:
    """The row that each row goes on from."""
    own = range(beams)
    parents = torch.tensor([own if step is None or step.parents is None else step.parents for step in steps])
    rows = (parents + torch.arange(len(steps))[:, None] * beams).flatten()
    return (rows[:, None] * members + torch.arange(members)).flatten()


def _picked(running: Running, places: Sequence[int]) -> Running:
    """Some of the requests, beside the tasks of all."""
    if len(places) == len(running.searches):
        return running
    index = _rows_of(places, running.requests[0].rows, running.last.device)
    return replace(
        running,
        requests=tuple(running.requests[place] for place in places),
        searches=tuple(running.searches[place] for place in places),
        began=tuple(running.began[place] for place in places),
        last=running.last[index],
        cache=running.cache.select(index),
    )


def _rows_of(places: Sequence[int], each: int, device: torch.device) -> Tensor:
    """The rows of some requests, which have `each` of them."""
    index = torch.tensor(places, device=device)
    return (index[:, None] * each + torch.arange(each, device=device)).flatten()


def averaged(log_probabilities: Tensor, members: int) -> Tensor:
    """Log-probabilities (R, ...) under the prompts of an ensemble to the mean of every `members` rows.

    Of next tokens as of whole answers: FiD-ICL's Ensemble-ICL averages the log-likelihoods of its prompts (Ye et al.
    2023; `trainer_ensemble.py` of their release), and a mean by token adds up to the mean of the whole.
    """
    return log_probabilities.unflatten(0, (-1, members)).mean(1)
