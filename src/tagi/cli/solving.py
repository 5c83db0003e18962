"""Inputs with an instruction each, as a person gives them, answered in their order and some at a time, so that the
first come early."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tagi.data import inputs
from tagi.data.inputs import Line
from tagi.data.types import Demonstration, Instruction
from tagi.errors import DataError, InputError
from tagi.infer.answers import Answer
from tagi.infer.asked import read_by
from tagi.infer.engine import Tagi
from tagi.infer.scheduler import TOGETHER
from tagi.infer.search import GenerationConfig
from tagi.model.adapter import TaskAdapter, stack


@dataclass(frozen=True, slots=True)
class Asked:
    """An input, and what to do with it; None where an adapter was given that has read that already."""

    text: str
    instruction: Instruction | None


class Solver:
    """Answers inputs of several tasks, and measures what reading the instructions and answering took.

    Args:
        adapter: what is applied to inputs without an instruction.
    """

    def __init__(self, tagi: Tagi, adapter: TaskAdapter | None, generation: GenerationConfig) -> None:
        self.tagi, self.adapter, self.generation = tagi, adapter, generation
        self.adapt_seconds = self.generate_seconds = 0.0
        self._known: dict[Instruction | None, Instruction | TaskAdapter] = {}

    def told(self, instruction: Instruction | None) -> Instruction | TaskAdapter:
        """What is known of a task, with all done that can be done once per task."""
        if instruction is None:
            assert self.adapter is not None
            return self.adapter
        return self.tagi.adapt(instruction) if self.tagi.model.method.adapts else instruction

    def answers(self, asked: Sequence[Asked], report: Callable[[int, int], None]) -> Iterator[list[Answer]]:
        """The answers in order, some at a time; tasks are mixed in one batch. `report` is told how many are done."""
        done = 0
        for some in self._parts(asked):
            yield self._answers(some, lambda more, _, done=done: report(done + more, len(asked)))
            done += len(some)

    def scores(self, asked: Sequence[Asked], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """Mean log-likelihood per token of every input's own choices, in the order of the inputs."""
        found: dict[int, list[float]] = {}
        for instruction in dict.fromkeys(one.instruction for one in asked):
            places = [place for place, one in enumerate(asked) if one.instruction == instruction]
            texts, own = [asked[place].text for place in places], [choices[place] for place in places]
            found |= dict(zip(places, self.tagi.score_choices(self.told(instruction), texts, own), strict=True))
        return [found[place] for place in range(len(asked))]

    def confidence(self, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[float | None]:
        """Mean log-likelihood per token of every answer, its end among them; None of an empty one."""
        some = [place for place, answer in enumerate(answers) if answer.text]
        scores = self.scores([asked[place] for place in some], [[answers[place].text] for place in some])
        found = dict(zip(some, (score for (score,) in scores), strict=True))
        return [found.get(place) for place in range(len(answers))]

    def notes(self, asked: Sequence[Asked]) -> list[str]:
        """What a person should know before trusting the answers, see `Tagi.notes`."""
        notes: list[str] = []
        for instruction in dict.fromkeys(one.instruction for one in asked):
            read = read_by(cast(TaskAdapter, self.adapter)) if instruction is None else instruction
            numbers = [number for number, one in enumerate(asked, 1) if one.instruction == instruction]
            notes += self.tagi.notes(read, [asked[number - 1].text for number in numbers], numbers)
        return list(dict.fromkeys(notes))

    def _parts(self, asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
        """Where equal inputs are drawn for, all at once: how many came before decides what each draws."""
        texts = {one.text for one in asked}
        size = len(asked) if self.generation.temperature and len(texts) < len(asked) else TOGETHER
        return (asked[first : first + size] for first in range(0, len(asked), size))

    def _answers(self, asked: Sequence[Asked], progress: Callable[[int, int], None]) -> list[Answer]:
        began = time.perf_counter()
        wanted = dict.fromkeys(one.instruction for one in asked)
        self._known = {one: self._known.get(one) or self.told(one) for one in wanted}
        adapted = time.perf_counter()
        adapters = [one for one in self._known.values() if isinstance(one, TaskAdapter)]
        instructions = [one for one in self._known.values() if isinstance(one, Instruction)]
        owners = [[*wanted].index(one.instruction) for one in asked]
        answers = self.tagi.answer(
            stack(adapters) if adapters else instructions,
            [one.text for one in asked],
            tasks=owners,
            generation=self.generation,
            progress=progress,
        )
        self.adapt_seconds += adapted - began
        self.generate_seconds += time.perf_counter() - adapted
        return answers


def read_instruction(definition: str, demonstrations: Sequence[str] | None) -> Instruction:
    """An instruction and its worked examples, each written `input => output`."""
    if not definition.strip():
        raise InputError("the instruction is empty")
    shown: list[Demonstration] = []
    for text in demonstrations or ():
        source, _, target = (part.strip() for part in text.partition("=>"))
        if not (source and target):
            raise InputError(f'--example {text!r}: must be written "input => output", with both sides filled')
        shown.append(Demonstration(source, target))
    return Instruction(definition, tuple(shown))


def read_file(path: Path) -> list[tuple[int, Line]]:
    """The numbered lines of a file, see `tagi.data.inputs.read_inputs`; the path `-` is standard input."""
    if str(path) != "-":
        return inputs.read_inputs(path)
    if sys.stdin is None:
        raise DataError("standard input", "", "is closed")
    return inputs.read_inputs(Path("standard input"), sys.stdin.buffer)
