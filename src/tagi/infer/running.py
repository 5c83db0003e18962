"""A running batch: requests in the middle of their answers, all of as many beams and prompts.

Rows of a batch: every request has its beams, and each of them one row for every prompt that is averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tagi.backbones.base import Backbone, Cache, Prepared
from tagi.backbones.rows import Rows
from tagi.data.collate import pad
from tagi.errors import InputError
from tagi.infer.search import GREEDY, GenerationConfig, Limits, Reason, Search, Step, begin

FREED = 0.25
"""Share of a batch that must be finished before its rows are dropped though none waits: that copies what is left."""


@dataclass(frozen=True, slots=True)
class Request:
    """One input to answer."""

    number: int
    prompts: Sequence[Sequence[int]]
    """Token ids; of several prompts the next-token log-probabilities are averaged."""
    prepared: Prepared
    task: int
    """Which of the prepared tasks it belongs to."""
    seed: str
    """Decides what is drawn where tokens are sampled."""
    limits: Limits
    generation: GenerationConfig = GREEDY

    @property
    def rows(self) -> int:
        """Rows of the model that it takes."""
        return self.generation.beams * len(self.prompts)

    @property
    def told(self) -> int:
        """Positions before its first token: of an instruction that its task attends to."""
        attended = self.prepared.attended
        return 0 if attended is None else int(attended.start[self.task])


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one step has settled of an answer."""

    number: int
    new: Sequence[int]
    reason: Reason | None
    """Why the answer is complete; None while it goes on."""
    error: Exception | None = None
    """What ended it before its end: this request's alone."""

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Running:
    """Requests, how far each answer is, and what the model has read for them."""

    requests: tuple[Request, ...]
    searches: tuple[Search | None, ...]
    """None where the answer is complete."""
    last: Tensor  # (R,), the newest tokens
    cache: Cache
    read: int
    """Positions of the row that has read most."""

    @property
    def open(self) -> list[int]:
        """Places of the answers that go on."""
        return [place for place, search in enumerate(self.searches) if search is not None]

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
    prepared, rows = _tasks(requests, members, device)
    ids, mask = (x.to(device) for x in pad([one for request in requests for one in request.prompts]))
    most = max(one.limits.most for one in requests)
    logits, cache = backbone.begin(ids, mask, prepared=prepared, rows=rows, room=most)
    if beams > 1:
        each = torch.arange(len(ids), device=device).unflatten(0, (-1, 1, members)).expand(-1, beams, -1).flatten()
        logits, cache = logits[each], cache.select(each)
    searches = tuple(begin(one.generation, one.limits, one.seed) for one in requests)
    read = max(len(prompt) + one.told for one in requests for prompt in one.prompts)
    return _advanced(Running(tuple(requests), searches, logits.argmax(-1), cache, read), logits)


def stepped(backbone: Backbone, running: Running) -> tuple[Running, list[Tokens]]:
    """One token more for every answer that goes on."""
    logits, cache = backbone.step(running.last, running.cache)
    return _advanced(replace(running, cache=cache, read=running.read + 1), logits)


def joined(running: Running | None, joining: Running) -> Running:
    """One batch out of two; answers that are complete are dropped."""
    if running is None or not joining.open:
        return running or joining
    ours, theirs = _picked(running, running.open), _picked(joining, joining.open)
    requests = ours.requests + theirs.requests
    prepared, rows = _tasks(requests, requests[0].rows, ours.last.device)
    room = max(one.limits.most for one in requests)
    return Running(
        requests,
        ours.searches + theirs.searches,
        torch.cat((ours.last, theirs.last)),
        ours.cache.beside(theirs.cache, prepared, rows, room),
        max(ours.read, theirs.read),
    )


def kept(running: Running, positions: int | None) -> Running | None:
    """Without the answers that are complete, where that is worth its copies or the model has no more positions for
    their rows; None where nothing is left."""
    places = running.open
    if not places:
        return None
    finished = len(running.requests) - len(places)
    full = positions is not None and running.read >= positions
    if not finished or (finished < FREED * len(running.requests) and not full):
        return running
    left = _picked(running, places)
    prepared, rows = _tasks(left.requests, left.requests[0].rows, left.last.device)
    return replace(left, cache=left.cache.given(prepared, rows))


def _tasks(requests: Sequence[Request], rows: int, device: torch.device) -> tuple[Prepared, Rows]:
    """What the tasks of some requests share, each task once, and which of the requests' rows belong to which."""
    numbers: dict[tuple[int, int], int] = {}
    owners = [numbers.setdefault((id(one.prepared), one.task), len(numbers)) for one in requests]
    first = {number: requests[place] for place, number in reversed(list(enumerate(owners)))}
    prepared = _gathered([first[number] for number in range(len(numbers))], device)
    owner = torch.tensor(owners, device=device)
    return prepared, Rows.of(owner.repeat_interleave(rows), len(numbers))


def _gathered(each: Sequence[Request], device: torch.device) -> Prepared:
    """The prepared tasks of some requests, one after another."""
    together: Prepared | None = None
    while each:
        whole = each[0].prepared
        count = next((i for i, one in enumerate(each) if one.prepared is not whole), len(each))
        tasks = [one.task for one in each[:count]]
        if tasks != list(range(whole.tasks)):
            whole = whole.select(torch.tensor(tasks, device=device))
        together = whole if together is None else together.beside(whole)
        each = each[count:]
    assert together is not None
    return together


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
    searches = tuple(None if step is None or step.reason else step.search for step in steps)
    settled = [
        Tokens(one.number, (), None, step)
        if isinstance(step, Exception)
        else Tokens(one.number, step.emitted, step.reason)
        for one, step in zip(running.requests, found, strict=True)
        if isinstance(step, Exception) or (step is not None and (step.emitted or step.reason))
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
    each, device = running.requests[0].rows, running.last.device
    index = torch.tensor(places, device=device)
    index = (index[:, None] * each + torch.arange(each, device=device)).flatten()
    return replace(
        running,
        requests=tuple(running.requests[place] for place in places),
        searches=tuple(running.searches[place] for place in places),
        last=running.last[index],
        cache=running.cache.select(index),
    )


def averaged(log_probabilities: Tensor, members: int) -> Tensor:
    """Log-probabilities (R, ...) under the prompts of an ensemble to the mean of every `members` rows.

    Of next tokens as of whole answers: FiD-ICL's Ensemble-ICL averages the log-likelihoods of its prompts (Ye et al.
    2023; `trainer_ensemble.py` of their release), and a mean by token adds up to the mean of the whole.
    """
    return log_probabilities.unflatten(0, (-1, members)).mean(1)
