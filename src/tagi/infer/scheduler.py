"""The one decoding loop: requests come and go while others run. Inference, evaluation and the server all use it."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch

from tagi.backbones.base import Backbone, Prepared
from tagi.errors import InputError
from tagi.infer.running import Running, Tokens, begun, joined, kept, stepped
from tagi.infer.tasks import Request

CAPACITY = 64
"""Rows of a running batch, at most, but for a single request that has more."""
TOGETHER = 4 * CAPACITY
"""Inputs that are answered together where there are many: enough to fill batches with inputs of like length."""
FREED = 0.25
"""Share of the capacity that must be free before requests join that nobody waits for one by one."""


class Scheduler:
    """Answers requests side by side, whatever their tasks, lengths and ways of decoding.

    Requests share a batch if they have as many beams and prompts, and adapters of equal sizes. What goes wrong with one
    ends that request alone: a prompt that the model cannot read, scores that are no numbers, whatever a stop function
    raises.
    """

    def __init__(self, backbone: Backbone, capacity: int = CAPACITY, *, eager: bool = True) -> None:
        """
        Args:
            eager: give a free place to a request at once. Otherwise they take places together once a quarter is free,
                which is faster where all are there from the beginning: each time that some join, all rows are copied.
        """
        self.backbone, self.capacity, self.eager = backbone, capacity, eager
        self._waiting: deque[Request] = deque()
        self._running: dict[Hashable, Running] = {}
        self._sizes: dict[int, tuple[Prepared, Hashable]] = {}

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def submit(self, request: Request) -> None:
        """Take a request; its number must differ from those of all others that are not done."""
        self._waiting.append(request)

    def cancel(self, number: int) -> None:
        """Forget a request, if it is not done yet; nothing more is said of it."""
        self._waiting = deque(one for one in self._waiting if one.number != number)
        for kind, running in list(self._running.items()):
            self._keep(kind, running.without(number))

    @torch.inference_mode()
    def step(self) -> list[Tokens]:
        """One token more for every request that has a place; what is settled by that."""
        settled: list[Tokens] = []
        readable: dict[Hashable, list[Request]] = {}
        for request in self._admitted():
            if (error := unreadable(self.backbone, request)) is None:
                readable.setdefault(self._kind(request), []).append(_within(self.backbone, request))
            else:
                settled.append(Tokens(request.number, (), None, error))
        for kind, requests in readable.items():
            new, tokens = begun(self.backbone, requests)
            settled += tokens
            self._keep(kind, joined(self._running.get(kind), new))
        awaited = self._kind(self._waiting[0]) if self._waiting else None
        for kind, running in list(self._running.items()):
            running, tokens = stepped(self.backbone, running)
            settled += tokens
            self._keep(kind, kept(running, self.backbone.max_positions, awaited=kind == awaited))
        if not self._running and not self._waiting:
            self._sizes.clear()
        return settled

    def run(self, requests: Sequence[Request]) -> Iterator[Tokens]:
        """Answer requests that are all there, until none is left."""
        for request in requests:
            self.submit(request)
        while not self.idle:
            yield from self.step()

    def _admitted(self) -> list[Request]:
        free = self.capacity - sum(running.open_rows for running in self._running.values())
        if self._running and not self.eager and free < FREED * self.capacity:
            return []
        new: list[Request] = []
        while self._waiting and (self._waiting[0].rows <= free or (not self._running and not new)):
            new.append(self._waiting.popleft())
            free -= new[-1].rows
        return new

    def _kind(self, request: Request) -> Hashable:
        """Requests of one kind can share a batch."""
        prepared = request.prepared
        if id(prepared) not in self._sizes:  # held here, so that no other object gets its identity
            sizes = frozenset((site, type(f), f.rank, f.scale) for site, f in prepared.modules.items())
            self._sizes[id(prepared)] = prepared, sizes
        return request.generation.beams, len(request.prompts), self._sizes[id(prepared)][1]

    def _keep(self, kind: Hashable, running: Running | None) -> None:
        if running is not None and running.open:
            self._running[kind] = running
        else:
            self._running.pop(kind, None)


def unreadable(backbone: Backbone, request: Request) -> InputError | None:
    """Why a language model cannot read a request."""
    vocabulary, positions = backbone.embedding.num_embeddings, backbone.max_positions
    if not request.prompts or not all(request.prompts):
        return InputError("the prompt has no tokens")
    for prompt in request.prompts:
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            return InputError(f"the prompt has a token that is none of the language model's {vocabulary:,}")
        if positions is not None and (tokens := len(prompt) + request.told) >= positions:
            return InputError(
                f"instruction and input have {tokens} tokens, and the language model has {positions} positions "
                "for them and the answer together"
            )
    return None


def _within(backbone: Backbone, request: Request) -> Request:
    """The request, its answer no longer than the model has positions."""
    if backbone.max_positions is None:
        return request
    most = min(request.limits.max_new_tokens, backbone.max_positions - request.told - max(map(len, request.prompts)))
    return replace(request, limits=replace(request.limits, max_new_tokens=most))
