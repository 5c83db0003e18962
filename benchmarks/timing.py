"""Cases that take turns in one process, and their medians."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tagi.cli.common import bar

Case = Callable[[], object]


@dataclass(slots=True)
class Comparison:
    """Cases that are compared; the first one is what the others are measured against."""

    title: str
    cases: Mapping[str, Case]
    count: int | None = None
    """Of `unit`, in a round of every case."""
    unit: str = "answers"
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of every round."""

    def median(self, name: str) -> float:
        """Median seconds of a case."""
        return median(self.seconds[name])

    def rows(self) -> list[dict[str, Any]]:
        """Every case's median, its ratio to the first one's round by round with their range, `count` a second."""
        first = next(iter(self.seconds.values()))
        made: list[dict[str, Any]] = []
        for name, seconds in self.seconds.items():
            ratios = [own / other for own, other in zip(seconds, first, strict=True)]
            row = {
                "": name,
                "ms": 1000 * median(seconds),
                "ratio": median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
            made.append(row if self.count is None else row | {f"{self.unit}/s": self.count / median(seconds)})
        return made


def alternate(compared: Sequence[Comparison], rounds: int) -> None:
    """Run every case of all comparisons once to warm up, then in turn for some rounds, which gives their `seconds`.

    The order within a round changes from round to round, so that none always follows the same other.
    """
    places = [(one, name) for one in compared for name in one.cases]
    for one, name in places:
        one.cases[name]()
        one.seconds[name] = []
    with bar("timing") as progress:
        for done in range(rounds):
            turn = done % len(places)
            for one, name in places[turn:] + places[:turn]:
                began = time.perf_counter()
                one.cases[name]()
                one.seconds[name].append(time.perf_counter() - began)
            progress(done + 1, rounds)
