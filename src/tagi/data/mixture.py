"""The task-grouped mixture: batches of T tasks with k rows each, bucketed by length.

Batch i is a pure function of the seed and i, so a run resumes at any batch without replaying the earlier ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd
from random import Random

import numpy as np
from numpy.typing import NDArray

from tagi.data.types import Demonstration, Example, Task

WINDOW = 16
"""Batches that are drawn together, sorted by length and cut, so that a batch holds rows of similar length."""
ENDLESS = 100_000
"""A sequence at least this long generates its examples in random order already; it is read straight on."""
BLOCK = 4
"""Within a task, rows are drawn in shuffled blocks of at most BLOCK · k, sorted by length and cut into groups of k."""

_ROUND = 1_000


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Numbered tasks, and how each is seen on its `visit`-th turn: one may be worded differently every time."""

    count: int
    task: Callable[[int, int], Task]
    """By number and visit."""

    def __len__(self) -> int:
        return self.count

    def first(self) -> list[Task]:
        """All of them as on their first turn."""
        return [self.task(number, 0) for number in range(self.count)]


def fixed(tasks: Sequence[Task]) -> TaskSource:
    """Tasks that are always worded the same."""
    return TaskSource(len(tasks), lambda number, visit: tasks[number])


def demonstrated(tasks: Sequence[Task], count: int) -> TaskSource:
    """Tasks that show other rows of their own on every visit.

    They are A.1's k support examples: none of them is among the visit's examples, of which the mixture draws m to ask.
    """

    def task(number: int, visit: int) -> Task:
        whole = tasks[number]
        shown = min(count, len(whole.examples) - 1)
        if shown < 1:
            return whole
        examples, rng = list(whole.examples), Random(f"{visit} {whole.name}")
        support = sorted(rng.sample(range(len(examples)), shown))
        told = tuple(Demonstration(examples[i].input, rng.choice(examples[i].targets)) for i in support)
        kept = [one for i, one in enumerate(examples) if i not in support]
        return replace(whole, instruction=replace(whole.instruction, demonstrations=told), examples=kept)

    return TaskSource(len(tasks), task)


def undemonstrated(source: TaskSource, share: float, seed: int) -> TaskSource:
    """Tasks that come without their demonstrations on some share of their turns, which may be none."""

    def task(number: int, visit: int) -> Task:
        task = source.task(number, visit)
        if np.random.default_rng((seed, 3, number, visit)).random() >= share:
            return task
        return replace(task, instruction=replace(task.instruction, demonstrations=()))

    return TaskSource(len(source), task)


@dataclass(frozen=True)
class WeightedSources:
    """Several sources that take turns, evenly spread; each cycles through its own tasks and counts its own visits."""

    sources: Sequence[TaskSource]
    shares: Sequence[float]
    """Relative to each other, kept to a thousandth of the whole; every source has a turn in a round."""

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Turns of every source in one round."""
        total = sum(self.shares)
        counts = [max(round(share / total * _ROUND), 1) for share in self.shares]
        return tuple(count // gcd(*counts) for count in counts)

    @cached_property
    def _order(self) -> list[tuple[int, int]]:
        """Of every turn of a round, whose it is and the number m among that source's n, which is due at (m + ½) / n."""
        due = [((m + 0.5) / n, part, m) for part, n in enumerate(self.counts) for m in range(n)]
        return [(part, m) for _, part, m in sorted(due)]

    def turn(self, turn: int) -> tuple[int, int]:
        """Whose turn number `turn` of all is, and its number among that source's own."""
        number, place = divmod(turn, len(self._order))
        part, m = self._order[place]
        return part, number * self.counts[part] + m


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """One task and the k rows of it that stand together in a batch."""

    task: Task
    examples: tuple[Example, ...]

    @property
    def length(self) -> int:
        """Characters of the longest row."""
        return max(len(example.input) + len(example.targets[0]) for example in self.examples)

    def prompt_length(self, demonstrations: int) -> int:
        """Characters of the longest row behind its definition and so many demonstrations."""
        told = self.task.instruction
        shown = sum(len(one.input) + len(one.output) for one in told.demonstrations[:demonstrations])
        return self.length + len(told.definition) + shown


class Mixture:
    """Every epoch of a source visits each of its tasks once, in an order of its own; each visit shows the next k rows.

    Of a row with several accepted answers, every visit trains on one drawn at random, as Tk-Instruct does.

    Of several sources each has its own epochs; see `WeightedSources`.

    Args:
        length: of a group; a batch holds groups of similar length.
        batches_per_step: they hold groups of similar length too, so that no process waits long for another.
    """

    def __init__(
        self,
        source: TaskSource | WeightedSources,
        *,
        tasks: int,
        rows: int,
        seed: int,
        length: Callable[[TaskGroup], int] = lambda group: group.length,
        batches_per_step: int = 1,
    ) -> None:
        self.shares = source if isinstance(source, WeightedSources) else WeightedSources((source,), (1.0,))
        self.tasks, self.rows, self.seed = tasks, rows, seed
        self.length, self.batches_per_step = length, batches_per_step
        self._window = lru_cache(maxsize=2)(self._draw_window)

    def batch(self, index: int) -> tuple[TaskGroup, ...]:
        """The T groups of batch `index`."""
        return self._window(index // WINDOW)[index % WINDOW]

    def _draw_window(self, window: int) -> list[tuple[TaskGroup, ...]]:
        first = window * WINDOW * self.tasks
        groups = [self._group(first + i) for i in range(WINDOW * self.tasks)]
        groups.sort(key=self.length)
        batches = [tuple(groups[i : i + self.tasks]) for i in range(0, len(groups), self.tasks)]
        batches_per_step = [batches[i : i + self.batches_per_step] for i in range(0, WINDOW, self.batches_per_step)]
        order = np.random.default_rng((self.seed, 1, window)).permutation(len(batches_per_step))
        return [batch for i in order for batch in batches_per_step[i]]

    def _group(self, turn: int) -> TaskGroup:
        part, own = self.shares.turn(turn)
        source = self.shares.sources[part]
        visit, place = divmod(own, len(source))
        number = int(epoch_order(self.seed, visit, len(source))[place])
        task = source.task(number, visit)
        rows = draw_rows(task.examples, self.rows, visit, (self.seed, 2, number))
        return TaskGroup(task, draw_references(rows, (self.seed, 4, turn)))


def draw_rows(examples: Sequence[Example], rows: int, visit: int, seed: tuple[int, ...]) -> tuple[Example, ...]:
    """The rows of a task's `visit`-th turn: a pass shows every full group of k once, then reshuffles."""
    count = len(examples)
    if count >= ENDLESS:
        return tuple(examples[(visit * rows + i) % count] for i in range(rows))
    groups = max(count // rows, 1)
    round_number, place = divmod(visit, groups)
    order = np.resize(np.random.default_rng((*seed, round_number)).permutation(count), max(count, rows))
    in_block = min(BLOCK, max(groups // 2, 1))  # at least two blocks, or every round would show the same groups
    block = place // in_block * in_block * rows
    members = [examples[int(i)] for i in order[block : block + in_block * rows]]
    members.sort(key=lambda example: len(example.input))
    start = place % in_block * rows
    return tuple(members[start : start + rows])


def draw_references(rows: Sequence[Example], seed: tuple[int, ...]) -> tuple[Example, ...]:
    """The rows with one accepted answer each, all equally likely; a function of the seed alone."""
    if all(len(row.targets) == 1 for row in rows):
        return tuple(rows)
    rng = np.random.default_rng(seed)
    return tuple(replace(row, targets=(row.targets[rng.integers(len(row.targets))],)) for row in rows)


@lru_cache(maxsize=16)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which one epoch visits `count` things, a function of the seed and the epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)
