"""Between texts and the decoding loop: which requests go together, and what of the tokens is the answer."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tagi.infer.decode import CAPACITY, Request, Waiting
from tagi.infer.search import Reason


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of an answer, why it ended, and how many tokens it took."""

    text: str
    reason: Reason | None
    tokens: int


def grouped(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests of as many rows each, those of similar length side by side."""

    def size(request: Request) -> tuple[int, int]:
        return request.rows, max(map(len, request.prompts))

    for _, alike in groupby(sorted(requests, key=size), key=lambda request: request.rows):
        yield list(alike)


def capacity(requests: Sequence[Request]) -> int:
    """Requests of so many rows each that are decoded at a time."""
    return max(CAPACITY // requests[0].rows, 1)


def at_hand(requests: Sequence[Request]) -> Waiting:
    """Requests that are all there from the beginning."""
    left = iter(requests)

    def waiting(count: int, idle: bool) -> list[Request]:
        return [request for _, request in zip(range(count), left, strict=False)]

    return waiting


def seeded(seed: int, inputs: Sequence[str]) -> list[str]:
    """What decides the draws of each answer: the seed and the input, and for equal inputs how many came before.

    So nothing else in the batch does.
    """
    before: Counter[str] = Counter()
    seeds = []
    for text in inputs:
        seeds.append(f"{seed} {before[text]} {text}")
        before[text] += 1
    return seeds


def cut(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first stop string; None if there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None


def settled(text: str, stop: Sequence[str]) -> int:
    """How many characters of an unfinished answer cannot change: whole words before what may begin a stop string."""
    held = [
        len(text) - size for one in stop for size in range(1, min(len(one), len(text)) + 1) if text.endswith(one[:size])
    ]
    return text.rfind(" ", 0, min([*held, len(text)])) + 1
