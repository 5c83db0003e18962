"""Super-NaturalInstructions in its official layout: `tasks/*.json`, `splits/<split>/{train,test}_tasks.txt`.

Listing reads split files only; a task file is read when its task is loaded, and only the instances asked for
are kept.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tagi.data.languages import ENGLISH, WithLanguages
from tagi.data.records import Record, Written, as_list, parse_json, written
from tagi.data.types import Demonstration, Example, Instruction, Task, named, taken
from tagi.errors import ConfigError, DataError
from tagi.reading import read_lines, read_text

Part = Literal["train", "test"]


def _shown(names: list[str]) -> list[str]:
    """Names as tables show them, so that no two of one look count apart."""
    return [" ".join(name.split()) for name in names]


def _first_is_written(definitions: list[str]) -> list[str]:
    return [written(definitions[0]), *definitions[1:]]


class Positive(Record):
    """A positive example of a task file; its explanation is not read."""

    input: str
    output: str


class _Instance(Record):
    id: str
    input: Written
    output: Annotated[list[str], Field(min_length=1)]


def _ids_differ(instances: list[_Instance]) -> list[_Instance]:
    name, count = Counter(instance.id for instance in instances).most_common(1)[0]
    if count > 1:
        raise ValueError(f"id {name!r} occurs twice")
    return instances


def _some_answered(instances: list[_Instance]) -> list[_Instance]:
    """Empty outputs do occur in the benchmark; where there is nothing else, what is right was not published."""
    if not any(text.strip() for instance in instances for text in instance.output):
        raise ValueError("all outputs are empty, so no instance has a label")
    return instances


class _TaskFile(WithLanguages):
    """The fields of the benchmark's task files that we read."""

    categories: Annotated[list[str], Field(alias="Categories", min_length=1), AfterValidator(_shown)]
    definition: Annotated[
        list[str],
        Field(alias="Definition", min_length=1),
        BeforeValidator(as_list),
        AfterValidator(_first_is_written),
    ]
    demonstrations: Annotated[list[Positive], Field(alias="Positive Examples")]
    instances: Annotated[
        list[_Instance],
        Field(alias="Instances", min_length=1),
        AfterValidator(_ids_differ),
        AfterValidator(_some_answered),
    ]


View = tuple[int | None, int | None]
"""Which instances of a task: `limit` and `seed` of `load_task`."""


@dataclass(frozen=True, slots=True)
class SniDataset:
    """A download of the benchmark, whole or in part."""

    root: Path
    split: str = "default"
    language: str = ENGLISH
    """Which tasks are used; see `Languages.fit`."""

    def names(self, part: Part) -> list[str]:
        """Task names of one part of the split, in the file's order; opens no task file.

        Raises:
            DataError: a folder or the split file is missing, or it names no task, one twice or one that is not there.
        """
        tasks = self.root / "tasks"
        if not tasks.is_dir():
            raise DataError(self.root, "tasks", "there is no such folder")
        path = self.root / "splits" / self.split / f"{part}_tasks.txt"
        names = [line.strip() for _, line in read_lines(path)]
        if not names:
            raise DataError(path, "", "names no task")
        here = {file.stem for file in tasks.glob("*.json")}
        for number, name in enumerate(names):
            if name in names[:number]:
                raise DataError(path, name, "is named twice")
            if name not in here:
                near = difflib.get_close_matches(name, here, n=1)
                raise DataError(path, name, "has no task file" + (f", did you mean {near[0]}?" if near else ""))
        return names

    def load(self, name: str, *, limit: int | None = None, seed: int | None = None) -> Task:
        """The task of that name; see `load_task`."""
        return load_task(self._path(name), limit=limit, seed=seed)

    def by_language(self, names: Iterable[str], *views: View) -> tuple[dict[str, list[Task]], dict[str, str]]:
        """The tasks of the language, each in some views, and the languages of the rest; reads every file once.

        Raises:
            DataError: See `load_task`; also if no task is of the language: names those that there are.
        """
        kept: dict[str, list[Task]] = {}
        left_out: dict[str, tuple[str, ...]] = {}
        for name in names:
            path = self._path(name)
            content = parse_json(_TaskFile, read_text(path), path)
            if content.languages.fit(self.language):
                kept[name] = [_task(path, content, *view) for view in views]
            else:
                left_out[name] = content.languages.names
        if left_out and not kept:
            here = sorted({one for languages in left_out.values() for one in languages})
            reason = f"none of {len(left_out)} tasks is {self.language}; there are tasks in {'; '.join(here)}"
            raise DataError(self.root, "language", reason)
        return kept, {name: ", ".join(languages) for name, languages in left_out.items()}

    def chosen(self, part: Part, only: Sequence[str], limit: int | None = None) -> tuple[list[Task], dict[str, str]]:
        """The tasks of a part that are of the language and the languages of the rest; of those asked for by name,
        where any are.

        Raises:
            ConfigError: a task that is not there, or one asked for by name that is of another language.
            DataError: See `names` and `by_language`.
        """
        names = named(self.names(part), str, only)
        if not only:
            kept, left_out = self.by_language(names, (limit, None))
            return [task for (task,) in kept.values()], left_out
        tasks = [self.load(name, limit=limit) for name in names]
        for task in tasks:
            if not task.languages.fit(self.language):
                stated = ", ".join(task.languages.names)
                raise ConfigError(f"{task.name}: is not {self.language} ({stated}); choose its language to use it")
        return tasks, {}

    def _path(self, name: str) -> Path:
        return self.root / "tasks" / f"{name}.json"


def load_task(path: Path, *, limit: int | None = None, seed: int | None = None) -> Task:
    """Read one task file: as in Tk-Instruct, the instruction is the first definition and every positive example.

    Without a seed the first `limit` instances are taken, which is how test tasks are scored (the benchmark puts 100
    balanced instances first); with one, `limit` at random by seed and name, which is how Tk-Instruct trains.

    Raises:
        DataError: it cannot be read, or a field is missing, empty or of the wrong type; names the first. Some empty
            outputs do occur in the benchmark, and are kept beside others.
    """
    return _task(path, parse_json(_TaskFile, read_text(path), path), limit, seed)


def _task(path: Path, content: _TaskFile, limit: int | None, seed: int | None) -> Task:
    demonstrations = tuple(Demonstration(item.input, item.output) for item in content.demonstrations)
    return Task(
        name=path.stem,
        instruction=Instruction(content.definition[0].strip(), demonstrations),
        categories=tuple(content.categories),
        examples=[
            Example(item.id, item.input, tuple(item.output))
            for item in taken(content.instances, limit, None if seed is None else f"{seed} {path.stem}")
        ],
        languages=content.languages,
    )


def largest_categories(tasks: Iterable[Task], count: int) -> list[str]:
    """The `count` categories with the most tasks, in that order, ties by name (A.3, Table 10); fewer are a ConfigError.

    A task counts in its first category.
    """
    sizes = Counter(task.categories[0] for task in tasks)
    if count > len(sizes):
        raise ConfigError(f"data.categories: {count} are asked for, the training tasks have {len(sizes)}")
    return sorted(sizes, key=lambda name: (-sizes[name], name))[:count]


def without_overlap(test: Iterable[Task], train: Iterable[Task]) -> list[Task]:
    """The test tasks without the rows whose input also is a training row's, and without tasks of no other row.

    Case and spaces are ignored. The official splits contain such rows; a figure without them is reported beside the
    official one.
    """
    trained = {_normalised(row) for task in train for row in task.examples}
    kept = (replace(task, examples=[row for row in task.examples if _normalised(row) not in trained]) for task in test)
    return [task for task in kept if task.examples]


def _normalised(example: Example) -> str:
    return " ".join(example.input.casefold().split())
