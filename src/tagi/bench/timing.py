"""Ratios measured side by side: alternating runs in one process, medians."""

import time
from collections.abc import Callable, Mapping, Sequence
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
class Series:
    """Where a comparison stands among others that differ in the number of tasks only."""

    name: str
    tasks: int


@dataclass(frozen=True, slots=True)
class Group:
    """Cases to be compared; the first one is what the others are measured against."""

    title: str
    cases: Mapping[str, Case]
    answers: int | None = None
    """Inputs that a round of every case answers, where they all answer any."""
    series: Series | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cases that took turns; the first one is what the others are measured against."""

    title: str
    timings: tuple[Timing, ...]
    answers: int | None = None
    """Inputs that a round of every case answers, where they all answer any."""
    series: Series | None = None

    def timing(self, name: str) -> Timing:
        """The case of that name."""
        return next(timing for timing in self.timings if timing.name == name)

    def ratios(self, number: int) -> tuple[float, ...]:
        """How many times as long as the first case a case took, round by round."""
        pairs = zip(self.timings[number].seconds, self.timings[0].seconds, strict=True)
        return tuple(one / first for one, first in pairs)

    def as_json(self) -> dict[str, Any]:
        """Medians, ratios and their range, answers a second where there are any."""
        cases = [self._case(number) for number in range(len(self.timings))]
        tasks = None if self.series is None else self.series.tasks
        return {"title": self.title, "tasks": tasks, "answers": self.answers, "cases": cases}

    def _case(self, number: int) -> dict[str, Any]:
        timing, ratios = self.timings[number], self.ratios(number)
        speed = {} if self.answers is None else {"answers_per_second": self.answers / timing.median}
        return {
            "name": timing.name,
            "median_s": timing.median,
            "ratio": median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            **speed,
            "seconds": list(timing.seconds),
        }


def alternate(group: Group, rounds: int, progress: Progress | None = None) -> Comparison:
    """One group of cases by itself, see `alternate_all`."""
    return alternate_all([group], rounds, progress)[0]


def alternate_all(groups: Sequence[Group], rounds: int, progress: Progress | None = None) -> list[Comparison]:
    """Run every case of all groups once to warm up, then in turn for some rounds; gives a comparison for each group.

    The order within a round changes from round to round, so that none always follows the same other.
    """
    places = [(number, name) for number, group in enumerate(groups) for name in group.cases]
    for number, name in places:
        groups[number].cases[name]()
    seconds: dict[tuple[int, str], list[float]] = {place: [] for place in places}
    for done in range(rounds):
        turn = done % len(places)
        for number, name in places[turn:] + places[:turn]:
            began = time.perf_counter()
            groups[number].cases[name]()
            seconds[number, name].append(time.perf_counter() - began)
        if progress is not None:
            progress(done + 1, rounds)
    return [
        Comparison(
            group.title,
            tuple(Timing(name, tuple(seconds[number, name])) for name in group.cases),
            group.answers,
            group.series,
        )
        for number, group in enumerate(groups)
    ]


def shown(ratio: float) -> str:
    """A ratio with two digits that say something."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"
