"""Everyday tasks: folders `train/` and `test/` of task files, each of whose instructions is worded in several ways."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from tagi.data.mixture import TaskSource, demonstrated
from tagi.data.records import Record, Written, parse_json
from tagi.data.sources.base import TaskList, grouped, later
from tagi.data.types import Example, Instruction, Task, named
from tagi.errors import ConfigError, DataError
from tagi.reading import read_text

Part = Literal["train", "test"]


class _Instance(Record):
    input: Written
    output: Annotated[list[Written], Field(min_length=1)]


class _TaskFile(Record):
    categories: Annotated[list[str], Field(alias="Categories", min_length=1)]
    definition: Annotated[list[Written], Field(alias="Definition", min_length=1)]
    paraphrases: Annotated[list[Written], Field(alias="Paraphrases")]
    instances: Annotated[list[_Instance], Field(alias="Instances", min_length=1)]


@dataclass(frozen=True, slots=True)
class Worded(Task):
    """A task in one of its wordings: the definition, then its paraphrases."""

    wordings: tuple[str, ...]

    def within(self, number: int) -> Task:
        """The task in another of them."""
        return replace(self, instruction=Instruction(self.wordings[number]))


class Everyday(TaskList[Worded]):
    """The tasks of both folders; whole families of similar inputs are held out of `train/` for validation.

    Demonstrations are other rows of a task, for the files give none.
    """

    @cached_property
    def tasks(self) -> list[Worded]:
        data = self.data
        if data.part == "test":
            return [later(one, data.skip) for one in named(self._read("test"), lambda one: one.name, data.only)]
        return named(self._split[0], lambda one: one.name, data.only)

    def turns(self, tasks: Sequence[Worded], shown: int) -> TaskSource:
        """Each in one of its wordings, drawn anew on every visit, as are the rows that it shows."""

        def task(number: int, visit: int) -> Task:
            one = tasks[number]
            drawn = Random(f"{self.data.seed} {one.name} {visit}").randrange(len(one.wordings))
            return demonstrated([one.within(drawn)], shown).task(0, visit)

        return TaskSource(len(tasks), task)

    def valid(self, shown: int) -> list[Task]:
        return [task.first(self.data.valid_instances) for task in demonstrated(self._split[1], shown).first()]

    def test(self, shown: int, wording: int = 0) -> list[Task]:
        """See `Source.test`; `wording` 0 is the definition, 1, 2, … paraphrases; a ConfigError where there is none."""
        tasks = named(self._read("test"), lambda one: one.name, self.data.only)
        if few := next((one for one in tasks if wording >= len(one.wordings)), None):
            raise ConfigError(f"wording: {wording} is none of {few.name}, which has 0 to {len(few.wordings) - 1}")
        return demonstrated([one.within(wording) for one in tasks], shown).first()

    def wordings(self) -> int:
        """In how many ways every test task's instruction is worded."""
        return min(len(one.wordings) for one in self._read("test"))

    def texts(self) -> Iterator[str]:
        yield from super().texts()
        for one in self.tasks:
            yield from one.wordings[1:]

    def files(self) -> list[Path]:
        return _files(self.folder, self.data.part)

    @cached_property
    def _split(self) -> tuple[list[Worded], list[Worded]]:
        """The meta-train tasks, and the validation ones: families in random order, until there are enough tasks."""
        tasks, held_out = self._read("train"), list[Worded]()
        # `b_mail_subject`, `b_mail_sender`, … ask different things of similar inputs
        families = grouped(tasks, lambda one: "_".join(one.name.split("_")[:2]))
        for name in Random(self.data.seed).sample(list(families), len(families)):
            if len(held_out) >= self.data.valid_tasks:
                break
            held_out += families[name]
        kept = [one for one in tasks if one not in held_out]
        if not kept:
            raise ConfigError(f"data.valid_tasks: {self.data.valid_tasks} leaves no training task of {len(tasks)}")
        return kept, held_out

    def _read(self, part: Part) -> list[Worded]:
        tasks: list[Worded] = []
        for path in _files(self.folder, part):
            content = parse_json(_TaskFile, read_text(path), path)
            rows = enumerate(content.instances)
            examples = [Example(f"{path.stem}-{number}", row.input, tuple(row.output)) for number, row in rows]
            wordings = (content.definition[0], *content.paraphrases)
            told = Instruction(wordings[0])
            tasks.append(Worded(path.stem, told, tuple(content.categories), examples, wordings))
        return tasks


def _files(folder: Path, part: Part) -> list[Path]:
    files = sorted((folder / part).glob("*.json"))
    if not files:
        raise DataError(folder / part, "", "holds no task file (*.json)")
    return files
