"""The one decoding loop, and the scoring of given answers. Inference, evaluation and the server all use them.

Rows of a batch: every request has its beams, and each of them one row for every prompt that is averaged.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tagi.backbones.rows import Rows
from tagi.config import CausalShape
from tagi.data.collate import pad
from tagi.errors import InputError
from tagi.infer.compiled import Compiled
from tagi.infer.search import GREEDY, Decoding, Limits, Reason, Search, Step, begin
from tagi.infer.steps import Plain, StepInput, Steps
from tagi.losses import valid_positions
from tagi.model.tagi import Prepared, TagiModel, shift_right

CAPACITY = 64
"""Requests of a running batch, at most."""
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
    decoding: Decoding = GREEDY

    @property
    def rows(self) -> int:
        """Rows of the model that it takes."""
        return self.decoding.beams * len(self.prompts)


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


Waiting = Callable[[int, bool], Sequence[Request]]
"""Asked for so many requests at most, and told whether nothing else runs: then it may wait for one to come."""


@dataclass(frozen=True, slots=True)
class _Running:
    """Requests in the middle of their answers, all of as many beams and prompts and with adapters of the same sizes."""

    requests: tuple[Request, ...]
    searches: tuple[Search | None, ...]
    """None where the answer is complete, and for places behind the last request."""
    read: StepInput

    @property
    def open(self) -> list[int]:
        """Places of the answers that go on."""
        return [place for place, search in enumerate(self.searches) if search is not None]


@torch.inference_mode()
def decode(
    model: TagiModel, waiting: Waiting, capacity: int = CAPACITY, compiled: Compiled | None = None
) -> Iterator[Tokens]:
    """Answer requests as they come: one that waits takes a free place at once, whoever else runs.

    What goes wrong with one request ends that request alone: a prompt that the model cannot read, scores that are no
    numbers, whatever a stop function raises.

    Args:
        compiled: of the model's backbone, where its steps are to be compiled.
    """
    with ExitStack() as opened:
        kinds = _Kinds(lambda: Plain(model.backbone) if compiled is None else opened.enter_context(compiled.steps()))
        while True:
            free = capacity - sum(len(running.open) for running in kinds.running.values())
            new = waiting(free, not kinds.running) if free else ()
            if not new and not kinds.running:
                return
            readable: dict[Hashable, list[Request]] = {}
            for request in new:
                if (error := _unreadable(model, request)) is None:
                    readable.setdefault(kinds.of(request), []).append(_within(model, request))
                else:
                    yield Tokens(request.number, (), None, error)
            for kind, requests in readable.items():
                joining, settled = _step(model, _begin(model, requests), kinds.steps(kind))
                yield from settled
                kinds.keep(kind, _joined(kinds.running.get(kind), joining, kinds.steps(kind)))
            for kind, running in list(kinds.running.items()):
                running, settled = _step(model, running, kinds.steps(kind))
                yield from settled
                kinds.keep(kind, _kept(running, kinds.steps(kind), at_once=_positions(model) is not None))


@dataclass(slots=True)
class _Kinds:
    """The running batches: requests share one if they have as many beams and prompts, and adapters of equal sizes."""

    open_steps: Callable[[], Steps]
    running: dict[Hashable, _Running] = field(default_factory=dict)
    _steps: dict[Hashable, Steps] = field(default_factory=dict)
    _sizes: dict[int, tuple[Prepared, Hashable]] = field(default_factory=dict)
    """By the identity of what is prepared, which stays as long as it is held here."""

    def of(self, request: Request) -> Hashable:
        """The kind of a request."""
        prepared = request.prepared
        if id(prepared) not in self._sizes:
            modules = prepared.adapter.modules.items()
            sizes = frozenset((site, factors.a.shape[1], factors.scale) for site, factors in modules)
            self._sizes[id(prepared)] = prepared, sizes
        return request.decoding.beams, len(request.prompts), self._sizes[id(prepared)][1]

    def steps(self, kind: Hashable) -> Steps:
        """How the steps of a kind's batch are done: each has places of its own."""
        if kind not in self._steps:
            self._steps[kind] = self.open_steps()
        return self._steps[kind]

    def keep(self, kind: Hashable, running: _Running | None) -> None:
        """Remember a kind's batch, or that nothing of it runs any more."""
        if running is not None and running.open:
            self.running[kind] = running
        else:
            self.running.pop(kind, None)


def _positions(model: TagiModel) -> int | None:
    """Tokens that the language model can read, prompt and answer together; None where there is no such bound."""
    shape = model.backbone.shape
    return shape.max_positions if isinstance(shape, CausalShape) else None


def _unreadable(model: TagiModel, request: Request) -> InputError | None:
    """Why the model cannot read a request."""
    vocabulary, positions = model.backbone.embedding.num_embeddings, _positions(model)
    if not request.prompts or not all(request.prompts):
        return InputError("the prompt has no tokens")
    for prompt in request.prompts:
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            return InputError(f"the prompt has a token that is none of the language model's {vocabulary:,}")
        if positions is not None and len(prompt) >= positions:
            return InputError(
                f"the prompt has {len(prompt)} tokens, and the language model has {positions} positions "
                "for prompt and answer together"
            )
    return None


def _within(model: TagiModel, request: Request) -> Request:
    """The request, its answer no longer than the model has positions."""
    if (positions := _positions(model)) is None:
        return request
    most = min(request.limits.most, positions - max(map(len, request.prompts)))
    return replace(request, limits=replace(request.limits, most=most))


def _begin(model: TagiModel, requests: Sequence[Request]) -> _Running:
    """Requests with their inputs encoded."""
    members, beams = len(requests[0].prompts), requests[0].decoding.beams
    prepared, rows = _worn(requests, members)
    device = prepared.adapter.mask.device
    ids, mask = (x.to(device) for x in pad([one for request in requests for one in request.prompts]))
    context = model.encode_input(ids, mask, prepared, rows)
    searches = tuple(begin(one.decoding, one.limits, one.seed) for one in requests)
    if beams > 1:
        each = torch.arange(len(ids), device=device).unflatten(0, (-1, 1, members)).expand(-1, beams, -1).flatten()
        context, rows = context.select(each), rows.select(each)
    if rows.tasks == rows.count:
        context = context.with_memory_inside(rows)
    last = ids.new_full((rows.count, 1), model.backbone.shape.decoder_start_token_id)
    return _Running(tuple(requests), searches, StepInput(last, context, prepared.adapter.modules, rows, None))


def _worn(requests: Sequence[Request], rows: int) -> tuple[Prepared, Rows]:
    """What the tasks of some requests share, each task once, and which of the requests' rows belong to which."""
    numbers: dict[tuple[int, int], int] = {}
    owners = [numbers.setdefault((id(one.prepared), one.task), len(numbers)) for one in requests]
    first = {number: requests[place] for place, number in reversed(list(enumerate(owners)))}
    prepared = _gathered([first[number] for number in range(len(numbers))])
    owner = torch.tensor(owners, device=prepared.adapter.mask.device)
    return prepared, Rows.of(owner.repeat_interleave(rows), len(numbers))


def _gathered(each: Sequence[Request]) -> Prepared:
    """The prepared tasks of some requests, one after another."""
    together: Prepared | None = None
    while each:
        whole = each[0].prepared
        count = next((i for i, one in enumerate(each) if one.prepared is not whole), len(each))
        tasks = [one.task for one in each[:count]]
        if tasks != list(range(whole.adapter.tasks)):
            whole = whole.select(torch.tensor(tasks, device=whole.adapter.mask.device))
        together = whole if together is None else together.beside(whole)
        each = each[count:]
    assert together is not None
    return together


def _step(model: TagiModel, running: _Running, how: Steps) -> tuple[_Running, list[Tokens]]:
    """One token more for every answer that goes on."""
    beams, members = running.requests[0].decoding.beams, len(running.requests[0].prompts)
    if running.read.past is None:
        logits, past = how.first(running.read, max(one.limits.most for one in running.requests))
    else:
        logits, past = how.next(running.read)
    scores = logits[:, -1].float()
    if members > 1:
        scores = averaged(scores.log_softmax(-1), members)
    best = scores.argmax(-1)
    highest, best = scores.gather(-1, best[:, None])[:, 0].tolist(), best.tolist()
    spans = [slice(place, place + beams) for place in range(0, len(best), beams)]
    found = [
        None if search is None else _advanced(search, scores[span], best[span], highest[span])
        for search, span in zip(running.searches, spans, strict=True)
    ]
    steps = [None if isinstance(one, Exception) else one for one in found]
    filler = [model.backbone.shape.pad_token_id] * beams
    tokens = [token for step in steps for token in (step.tokens if step and step.tokens else filler)]
    last = running.read.last.new_tensor(tokens).repeat_interleave(members)[:, None]
    if any(step is not None and step.parents is not None for step in steps):
        past = past.reordered(_reordered(steps, beams, members).to(last.device))
    searches = tuple(None if step is None or step.reason else step.search for step in steps)
    settled = [
        Tokens(one.number, (), None, step)
        if isinstance(step, Exception)
        else Tokens(one.number, step.emitted, step.reason)
        for one, step in zip(running.requests, found, strict=False)
        if isinstance(step, Exception) or (step is not None and (step.emitted or step.reason))
    ]
    return replace(running, searches=searches, read=replace(running.read, last=last, past=past)), settled


def _advanced(search: Search, scores: Tensor, best: Sequence[int], highest: Sequence[float]) -> Step | Exception:
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


def _joined(running: _Running | None, joining: _Running, steps: Steps) -> _Running:
    """One batch out of two; answers that are complete are dropped."""
    if running is None:
        return _placed(joining, steps)
    if not joining.open:
        return running
    ours, theirs = _picked(running, running.open), _picked(joining, joining.open)
    requests = ours.requests + theirs.requests
    read = _beside(ours.read, theirs.read, requests)
    return _placed(_Running(requests, ours.searches + theirs.searches, read), steps)


def _beside(ours: StepInput, theirs: StepInput, requests: Sequence[Request]) -> StepInput:
    """What all of the requests read, of which the first ones are ours."""
    prepared, rows = _worn(requests, requests[0].rows)
    contexts = ours.context, theirs.context
    shared = all(one.memory is not None for one in contexts)
    if not shared:
        contexts = ours.context.with_memory_inside(ours.rows), theirs.context.with_memory_inside(theirs.rows)
    assert ours.past is not None and theirs.past is not None
    return StepInput(
        torch.cat((ours.last, theirs.last)),
        contexts[0].beside(contexts[1], prepared.decoder if shared else None),
        prepared.adapter.modules,
        rows,
        ours.past.beside(theirs.past, max(one.limits.most for one in requests)),
    )


def _placed(running: _Running, steps: Steps) -> _Running:
    """Laid out for the steps that follow."""
    each = running.requests[0].rows
    read = steps.placed(running.read, each)
    spare = (None,) * (read.rows.count // each - len(running.searches))
    return replace(running, searches=running.searches + spare, read=read)


def _kept(running: _Running, steps: Steps, *, at_once: bool) -> _Running | None:
    """Without the answers that are complete, where that is worth its copies or must be; None where nothing is left."""
    places = running.open
    if not places:
        return None
    finished = len(running.requests) - len(places)
    if steps.size(len(places)) == len(running.searches) or (finished < FREED * len(running.requests) and not at_once):
        return running
    left = _picked(running, places)
    prepared, rows = _worn(left.requests, left.requests[0].rows)
    context = replace(left.read.context, memory=left.read.context.memory and prepared.decoder)
    read = replace(left.read, context=context, modules=prepared.adapter.modules, rows=rows)
    return _placed(replace(left, read=read), steps)


def _picked(running: _Running, places: Sequence[int]) -> _Running:
    """Some of the requests, beside the tasks of all."""
    if len(places) == len(running.searches):
        return running
    each, device = running.requests[0].rows, running.read.last.device
    index = torch.tensor(places, device=device)
    index = (index[:, None] * each + torch.arange(each, device=device)).flatten()
    return replace(
        running,
        requests=tuple(running.requests[place] for place in places),
        searches=tuple(running.searches[place] for place in places),
        read=running.read.select(index),
    )


class Likelihood(NamedTuple):
    """Of given answers under the model, in nats."""

    total: Tensor  # (C,) log-likelihood of all tokens
    tokens: Tensor  # (C,) how many there are


@torch.inference_mode()
def score_answers(
    model: TagiModel,
    input_ids: Tensor,
    input_mask: Tensor,
    labels: Tensor,
    owner: Tensor,
    *,
    prepared: Prepared,
    rows: Rows,
) -> Likelihood:
    """Log-likelihood of C answers to R inputs, one encoder pass for all answers of an input.

    Args:
        input_ids: (R, N), as `input_mask`.
        labels: (C, O) tokens of the answers, -100 where padded.
        owner: (C,) the input that each answer belongs to.
    """
    shape, modules = model.backbone.shape, prepared.adapter.modules
    context = model.encode_input(input_ids, input_mask, prepared, rows).select(owner)
    decoder_ids = shift_right(labels, shape.decoder_start_token_id, shape.pad_token_id)
    logits, _ = model.backbone.decode(decoder_ids, context, modules=modules, rows=rows.select(owner))
    valid = valid_positions(labels)
    chosen = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return Likelihood((chosen * valid).sum(1), valid.sum(1))


def averaged(log_probabilities: Tensor, members: int) -> Tensor:
    """Log-probabilities (R, ...) under the prompts of an ensemble to the mean of every `members` rows.

    Of next tokens as of whole answers: FiD-ICL's Ensemble-ICL averages the log-likelihoods of its prompts (Ye et al.
    2023; `trainer_ensemble.py` of their release), and a mean by token adds up to the mean of the whole.
    """
    return log_probabilities.unflatten(0, (-1, members)).mean(1)
