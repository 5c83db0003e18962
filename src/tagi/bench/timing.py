"""Ratios measured side by side: alternating runs in one process, medians."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Case = Callable[[], object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every round of one case."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return median(self.seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cases that took turns; the first one is what the others are measured against."""

    title: str
    timings: tuple[Timing, ...]

    def ratios(self, number: int) -> tuple[float, ...]:
        """How many times as long as the first case a case took, round by round."""
        pairs = zip(self.timings[number].seconds, self.timings[0].seconds, strict=True)
        return tuple(one / first for one, first in pairs)

    def as_json(self) -> dict[str, Any]:
        """Medians, ratios and their range."""
        return {
            "title": self.title,
            "cases": [
                {
                    "name": timing.name,
                    "median_s": timing.median,
                    "ratio": median(self.ratios(number)),
                    "ratio_range": [min(self.ratios(number)), max(self.ratios(number))],
                    "seconds": list(timing.seconds),
                }
                for number, timing in enumerate(self.timings)
            ],
        }


def alternate(title: str, cases: Mapping[str, Case], rounds: int, progress: Progress | None = None) -> Comparison:
    """Run every case once to warm up, then in turn for some rounds.

    The order within a round changes from round to round, so that none always follows the same other.
    """
    names = list(cases)
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - began)
        if progress is not None:
            progress(number + 1, rounds)
    return Comparison(title, tuple(Timing(name, tuple(values)) for name, values in seconds.items()))
