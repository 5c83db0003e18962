"""Tasks over real English passages: copy, extract, rewrite, choose, yes or no by a rule that the instruction states.

Training tasks come from the `c4-train` documents of a folder, probes from `c4-validation`. A task is one kind with the
values that its instruction names (a word, a number, a letter, …), worded in many ways; its rows are drawn on demand.
A few values are named in probes only: every fifth word (by a hash), and those in `text_kinds.POOLS` under `new`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Literal
from zlib import crc32

from tagi.data.mixture import TaskSource
from tagi.data.sources.base import Source
from tagi.data.sources.c4 import C4
from tagi.data.types import Demonstration, Example, Generated, Instruction, Task
from tagi.errors import DataError
from tagi.pretraining import text_choices, text_rewrites, text_spans
from tagi.pretraining.passages import Passages
from tagi.pretraining.text_kinds import Draw, Family, Kind, Row, Unsuited, Values

KINDS = (*text_spans.KINDS, *text_rewrites.KINDS, *text_choices.KINDS)
TEXT_TASKS = 10_000
"""Training tasks, each kind equally often."""
TEXT_DOCUMENTS = 10_000
"""Documents that training tasks are drawn from, where the config does not say otherwise."""
ROWS_PER_TASK = 1_000_000
_MOST_DRAWS = 400
_MOST_VALUES = 100
_DEMONSTRATION_SHARE = 16  # one run of sentences in so many is set aside for demonstrations

Probe = Literal["copy", "choose", "yes_no"]
PROBES: dict[Probe, tuple[Family, ...]] = {"copy": ("copy", "extract"), "choose": ("choose",), "yes_no": ("yes_no",)}
"""Copying a span that the instruction names, choosing one of the options, yes or no by a rule."""


@dataclass(frozen=True)
class TextTask:
    """One kind with the values that its instruction names, and the seed of its rows."""

    passages: Passages
    number: int
    kind: Kind
    values: Values
    seed: int

    @property
    def name(self) -> str:
        """An identifier, e.g. `text00012_first_words`."""
        return f"text{self.number:05d}_{self.kind.name}"

    def task(self, wording: int = 0, demonstrations: int = 0) -> Task:
        """The task in one wording, with up to `demonstrations` demonstrations whose sentences are in no row.

        Its category is its kind.
        """
        drawn = (self.row(ROWS_PER_TASK + number, demonstration=True) for number in range(demonstrations))
        shown = tuple(Demonstration(row.input, row.answer) for row in drawn if row is not None)
        definition = Random((self.seed << 32) ^ wording).choice(self.kind.wordings(self.values))
        examples = Generated(ROWS_PER_TASK, self._example)
        return Task(self.name, Instruction(definition, shown), (self.kind.name,), examples)

    def row(self, index: int, *, demonstration: bool = False) -> Row | None:
        """A row, a function of the seed and its number alone; None where the documents give none in many attempts."""
        draw = Draw(self.passages, Random((self.seed << 32) ^ index), self.values, index)
        for _ in range(_MOST_DRAWS):
            try:
                row = self.kind.row(draw)
            except Unsuited:
                continue
            if (row.run % _DEMONSTRATION_SHARE == 0) == demonstration:
                return row
        return None

    def _example(self, index: int) -> Example:
        """In the rare case that there is no such row, one of the first two, which the task was accepted for."""
        row = self.row(index) or self.row(index % 2)
        assert row is not None
        return Example(f"{self.name}-{index}", row.input, (row.answer,), row.choices)


def text_tasks(passages: Passages, seed: int, demonstrations: int = 0, first: int = 0) -> TaskSource:
    """Text tasks by their numbers from `first` on, worded anew on every visit."""

    def task(number: int, visit: int) -> Task:
        number += first
        made = text_task(passages, number, KINDS[number % len(KINDS)], seed)
        return made.task(wording=visit, demonstrations=demonstrations)

    return TaskSource(TEXT_TASKS, task)


def text_task(passages: Passages, number: int, kind: Kind, seed: int, *, new: bool = False) -> TextTask:
    """A task of some kind, its values drawn by seed and number, and again until the documents give it rows.

    Args:
        new: name values that no training instruction names, where the kind has any.

    Raises:
        DataError: the documents give no such row.
    """
    own = crc32(f"{seed} {number} {kind.name} {new}".encode())
    rng = Random(own)
    for _ in range(_MOST_VALUES):
        task = TextTask(passages, number, kind, kind.values(passages, rng, new=new), own)
        if task.row(0) is not None and task.row(1) is not None:
            return task
    raise DataError(passages.origin, "text", f"gives no rows for tasks of the kind {kind.name}")


class Text(Source):
    """Tasks over the training documents of a folder in C4's format; held-out ones over its validation documents."""

    def train(self, shown: int) -> TaskSource:
        passages = _passages(self.folder, "train", self.data.max_documents or TEXT_DOCUMENTS)
        return text_tasks(passages, self.data.seed, shown)

    def valid(self, shown: int) -> list[Task]:
        """Instructions name values as in training."""
        if not self.data.valid_tasks:
            return []
        held_out = text_tasks(_passages(self.folder, "validation"), self.data.seed, shown, first=TEXT_TASKS)
        tasks = (held_out.task(number, 0) for number in range(self.data.valid_tasks))
        return [task.first(self.data.valid_instances) for task in tasks]

    def texts(self) -> Iterator[str]:
        return C4(self.data).texts()

    def files(self) -> list[Path]:
        return C4(self.data).files()


@dataclass(frozen=True, slots=True)
class ProbeTasks:
    """The tasks of one probe: instructions that name values as in training, and ones that name new values."""

    seen: tuple[Task, ...]
    new: tuple[Task, ...]

    @property
    def every(self) -> tuple[Task, ...]:
        """Both."""
        return self.seen + self.new


def probes(
    folder: Path, seed: int, *, tasks: int = 24, instances: int = 12, demonstrations: int = 0
) -> dict[Probe, ProbeTasks]:
    """The three probes over a folder's validation documents.

    Args:
        tasks: of each probe with values as in training, and as many with new values.
        instances: rows of each task; a multiple of 12 puts every answer at every place equally often.

    Raises:
        DataError: see `Passages.read`.
    """
    passages = _passages(folder, "validation")

    def made(kinds: Iterable[Kind], first: int, new: bool) -> tuple[Task, ...]:
        chosen = enumerate(islice(cycle(kinds), tasks), start=first)
        each = [text_task(passages, number, kind, seed, new=new) for number, kind in chosen]
        return tuple(one.task(demonstrations=demonstrations).first(instances) for one in each)

    found: dict[Probe, ProbeTasks] = {}
    for name, families in PROBES.items():
        kinds = [kind for kind in KINDS if kind.family in families]
        found[name] = ProbeTasks(made(kinds, 0, False), made([kind for kind in kinds if kind.has_new], tasks, True))
    return found


@lru_cache(maxsize=4)
def _passages(folder: Path, part: Literal["train", "validation"], documents: int | None = None) -> Passages:
    """Read once in a process: training, its plan and its validation ask for the same."""
    return Passages.read(folder, part, documents)
