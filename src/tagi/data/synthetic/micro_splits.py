"""Splits of microtasks into training, validation and test tasks that are honestly different.

Tasks are compared by what they do: their answers to the same 200 inputs, the probes. Two tasks are the same
when they agree on 95 % of the probes that both are defined on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain, islice
from random import Random
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tagi.data.synthetic.micro_english import CATEGORIES
from tagi.data.synthetic.micro_ops import OPERATIONS, Operation
from tagi.data.synthetic.microtasks import MicroTask, draw_words, word_pool
from tagi.errors import ConfigError

PROBES = 200
SAME = 0.95
DIFFERENT = 0.05
SHOWN_TASK = (Operation("keep_only", "animals"), Operation("reverse"))  # the unseen task of the README
_LEAST_DEFINED = PROBES // 8

Pair = tuple[Operation, Operation]
Signature = NDArray[np.int64]  # a number for each probe's answer, 0 where undefined: (PROBES,) or (n, PROBES)


@dataclass(frozen=True)
class Split:
    """Single operations and compositions to train on; unseen compositions to select and test on."""

    singles: tuple[MicroTask, ...]
    compositions: tuple[MicroTask, ...]
    valid: tuple[MicroTask, ...]
    test: tuple[MicroTask, ...]

    @property
    def train(self) -> tuple[MicroTask, ...]:
        """Every training task: the single operations, then the compositions."""
        return self.singles + self.compositions


@lru_cache(maxsize=4)
def splits(seed: int, train_compositions: int = 5000, valid: int = 100, test: int = 500) -> Split:
    """Draws the tasks of a seed; test, valid and training compositions come from one distribution.

    No valid or test task equals a training task, the identity, a single operation, or another valid or test
    task. The composition shown in the README is the first test task. The order is random: to train on fewer
    compositions against the same test tasks, take the first ones.

    Raises:
        ConfigError: so many different compositions do not exist.
    """
    in_order = _proper_compositions(seed)
    pool = list(islice(in_order, test + valid + train_compositions))
    Random(seed).shuffle(pool)
    candidates = chain(pool, in_order)
    known = signature([MicroTask(0, SHOWN_TASK, 0).solve(words) for words in probes()])[None]
    test_pairs, known = _take("test", candidates, test - 1, known, distinct=True)
    valid_pairs, known = _take("valid", candidates, valid, known, distinct=True)
    train_pairs, _ = _take("train_compositions", candidates, train_compositions, known, distinct=False)
    drawn = [SHOWN_TASK, *test_pairs, *valid_pairs, *((operation,) for operation in OPERATIONS), *train_pairs]
    numbered = (MicroTask(number, operations, seed) for number, operations in enumerate(drawn))
    tasks = tuple(replace(task, seed=crc32(f"{seed} {task.name}".encode())) for task in numbered)
    first_train = test + valid + len(OPERATIONS)
    return Split(
        singles=tasks[test + valid : first_train],
        compositions=tasks[first_train:],
        valid=tasks[test : test + valid],
        test=tasks[:test],
    )


def shuffled_partner(tasks: Sequence[MicroTask], seed: int) -> list[int]:
    """For each task the index of another whose right answers differ: the *shuffled instruction* control.

    The partner is the first in a random order that agrees on less than 5 % of the probes, or else the one
    that agrees on the fewest. Needs at least two tasks.
    """
    table = np.stack([signature([task.solve(words) for words in probes()]) for task in tasks])
    rng = np.random.default_rng(seed)
    partners: list[int] = []
    for index, answers in enumerate(table):
        order = rng.permutation(len(tasks))
        others = order[order != index]
        equal = (table[others] == answers)[:, answers != 0].mean(axis=1)  # of the probes that this task is defined on
        partners.append(int(others[np.argmax(equal < DIFFERENT) if (equal < DIFFERENT).any() else np.argmin(equal)]))
    return partners


@cache
def probes() -> tuple[tuple[str, ...], ...]:
    """The 200 inputs by which tasks are compared; two categories are frequent in each, half repeat words."""
    rng = Random(0)
    names = tuple(CATEGORIES)
    pools = [word_pool((names[i % len(names)], rng.choice(names))) for i in range(PROBES)]
    return tuple(
        tuple(draw_words(rng, pool, repeated=(0.05, 0.35)[i // len(names) % 2])) for i, pool in enumerate(pools)
    )


def signature(answers: Sequence[Sequence[str]]) -> Signature:
    """A number for each answer, equal where the answers are; 0 for an undefined (empty) one."""
    return np.array([crc32(" ".join(words).encode()) + 1 if words else 0 for words in answers], dtype=np.int64)


def agreement(row: Signature, table: Signature) -> NDArray[np.float64]:
    """Share of equal answers (n,) among the probes that both are defined on, 0 where there is none.

    Args:
        row: (PROBES,).
        table: (n, PROBES).
    """
    defined = row != 0
    equal = ((table == row) & defined).sum(axis=1)
    both = ((table != 0) & defined).sum(axis=1)
    return equal / np.maximum(both, 1)


def _take(
    field: str, candidates: Iterator[tuple[Pair, Signature]], count: int, known: Signature, distinct: bool
) -> tuple[list[Pair], Signature]:
    """The next `count` candidates that equal no known task; where `distinct`, each becomes known at once."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        candidate = next(candidates, None)
        if candidate is None:
            raise ConfigError(f"{field}: {count} asked for, only {len(pairs)} different compositions are left")
        pair, row = candidate
        if agreement(row, known).max() < SAME:
            pairs.append(pair)
            known = np.vstack([known, row]) if distinct else known
    return pairs, known


def _proper_compositions(seed: int) -> Iterator[tuple[Pair, Signature]]:
    """Compositions in random order that are no simpler task in disguise."""
    steps = {operation: [operation.apply(words) for words in probes()] for operation in OPERATIONS}
    simple = np.stack([signature(probes()), *(signature(answers) for answers in steps.values())])
    for first, second in _shuffled_pairs(seed):
        row = signature([second.apply(words) if words else [] for words in steps[first]])
        defined = row[row != 0]
        if len(defined) < _LEAST_DEFINED or np.unique(defined, return_counts=True)[1].max() >= SAME * len(defined):
            continue  # seldom defined, or one answer to nearly everything
        if agreement(row, simple).max() < SAME:
            yield (first, second), row


def _shuffled_pairs(seed: int) -> Iterator[Pair]:
    """All pairs, drawn without replacement; all families are equally likely, so no large one dominates."""
    sizes = Counter(operation.family for operation in OPERATIONS)
    rarity = np.array([1 / sizes[operation.family] for operation in OPERATIONS])
    list_operations = [index for index, operation in enumerate(OPERATIONS) if not operation.answers]
    weights = np.outer(rarity[list_operations], rarity)
    order = np.argsort(np.random.default_rng(seed).exponential(size=weights.shape) / weights, axis=None)
    for first, second in zip(*np.unravel_index(order, weights.shape), strict=True):
        yield OPERATIONS[list_operations[first]], OPERATIONS[second]
