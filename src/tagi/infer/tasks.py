"""What is asked of a running batch, and the tasks that its rows belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tagi.backbones.base import Prepared
from tagi.backbones.rows import PADDED, Rows
from tagi.infer.search import GREEDY, GenerationConfig, Limits

Key = tuple[int, int]
"""A task: the identity of what was prepared, which a request holds, and its number there."""


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

    @property
    def key(self) -> Key:
        """Its task."""
        return id(self.prepared), self.task


@dataclass(frozen=True, slots=True)
class TaskTable:
    """The tasks of a running batch, each once, in places that others take when it is done: joining and leaving copy
    nothing but what is new."""

    prepared: Prepared
    places: dict[Key, int]
    free: tuple[int, ...] = ()
    """Places of tasks that no request is of any more."""
    own: bool = False
    """Whether the tensors are the table's, and can be written to."""

    @staticmethod
    def of(requests: Sequence[Request]) -> "TaskTable":
        """The tasks of some requests."""
        each = list(_by_key(requests).values())
        prepared, own = _gathered(each)
        return TaskTable(prepared, {request.key: place for place, request in enumerate(each)}, own=own)

    def with_tasks(self, requests: Sequence[Request]) -> "TaskTable":
        """The tasks of these requests and no others, new ones in places that are free."""
        needed = _by_key(requests)
        places = {key: place for key, place in self.places.items() if key in needed}
        free = [*self.free, *(place for key, place in self.places.items() if key not in needed)]
        new = [request for key, request in needed.items() if key not in places]
        if self.prepared.tasks > PADDED * len(requests) or (new and (not self.own or len(new) > len(free))):
            return TaskTable.of(requests)
        if not new:
            return replace(self, places=places, free=tuple(free))
        joining, _ = _gathered(new)
        chosen, left = free[: len(new)], free[len(new) :]
        prepared = self.prepared.put(torch.tensor(chosen, device=_device(joining)), joining)
        places |= {one.key: place for one, place in zip(new, chosen, strict=True)}
        return TaskTable(prepared, places, tuple(left), own=True)

    def rows(self, requests: Sequence[Request], each: int, device: torch.device) -> Rows:
        """Which task each of the requests' rows belongs to, where a request has `each` of them."""
        owner = torch.tensor([self.places[request.key] for request in requests], device=device)
        return Rows.of(owner.repeat_interleave(each), self.prepared.tasks)


def _by_key(requests: Sequence[Request]) -> dict[Key, Request]:
    """One request of every task, in the order in which tasks first come."""
    found: dict[Key, Request] = {}
    for request in requests:
        found.setdefault(request.key, request)
    return found


def _gathered(each: Sequence[Request]) -> tuple[Prepared, bool]:
    """The prepared tasks of some requests, one after another, and whether they are copies."""
    found = list[Prepared]()
    copied = False
    while each:
        whole = each[0].prepared
        count = next((i for i, one in enumerate(each) if one.prepared is not whole), len(each))
        tasks = [one.task for one in each[:count]]
        if tasks != list(range(whole.tasks)):
            whole, copied = whole.select(torch.tensor(tasks, device=_device(whole))), True
        found.append(whole)
        each = each[count:]
    return (found[0], copied) if len(found) == 1 else (Prepared.stack(found), True)


def _device(prepared: Prepared) -> torch.device | None:
    """Where its tensors lie."""
    held = [factors.a for factors in prepared.modules.values()]
    held += [] if prepared.attended is None else [prepared.attended.mask]
    return held[0].device if held else None
