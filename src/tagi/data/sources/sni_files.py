"""Super-NaturalInstructions in its official layout: `tasks/*.json`, `splits/<split>/{train,test}_tasks.txt`.

Listing reads split files only; a task file is read when its task is loaded, and only the instances asked for
are kept.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tagi.data.records import Record, parse_json, written
from tagi.data.types import Demonstration, Example, Instruction, Task, named
from tagi.errors import ConfigError, DataError
from tagi.reading import read_lines, read_text

Part = Literal["train", "test"]
_ENGLISH = re.compile(r"english|(en|eng)([-_].*)?")
"""The language's name, and its codes with or without a region (`en-GB`)."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _shown(names: list[str]) -> list[str]:
    """Names as tables show them, so that no two of one look count apart."""
    return [" ".join(name.split()) for name in names]


def _first_is_written(definitions: list[str]) -> list[str]:
    return [written(definitions[0]), *definitions[1:]]


class _Positive(Record):
    input: str
    output: str


class _Instance(Record):
    id: str
    input: Annotated[str, AfterValidator(written)]
    output: Annotated[list[str], Field(min_length=1)]


def _ids_differ(instances: list[_Instance]) -> list[_Instance]:
    seen: set[str] = set()
    for instance in instances:
        if instance.id in seen:
            raise ValueError(f"id {instance.id!r} occurs twice")
        seen.add(instance.id)
    return instances


def _some_answered(instances: list[_Instance]) -> list[_Instance]:
    """Empty outputs do occur in the benchmark; where there is nothing else, what is right was not published."""
    if not any(text.strip() for instance in instances for text in instance.output):
        raise ValueError("all outputs are empty, so no instance has a label")
    return instances


Languages = Annotated[list[str] | None, BeforeValidator(_as_list)]


class _TaskFile(Record):
    """The fields of the benchmark's task files that we read."""

    categories: Annotated[list[str], Field(alias="Categories", min_length=1), AfterValidator(_shown)]
    definition: Annotated[
        list[str],
        Field(alias="Definition", min_length=1),
        BeforeValidator(_as_list),
        AfterValidator(_first_is_written),
    ]
    demonstrations: Annotated[list[_Positive], Field(alias="Positive Examples")]
    instances: Annotated[
        list[_Instance],
        Field(alias="Instances", min_length=1),
        AfterValidator(_ids_differ),
        AfterValidator(_some_answered),
    ]
    input_language: Annotated[Languages, Field(alias="Input_language")] = None
    output_language: Annotated[Languages, Field(alias="Output_language")] = None
    instruction_language: Annotated[Languages, Field(alias="Instruction_language")] = None

    @property
    def other_languages(self) -> list[str]:
        """Those that are stated and not English."""
        stated = (*(self.input_language or ()), *(self.output_language or ()), *(self.instruction_language or ()))
        languages = dict.fromkeys(one.strip() for one in stated if one.strip())
        return [one for one in languages if not _ENGLISH.fullmatch(one.lower())]


View = tuple[int | None, int | None]
"""Which instances of a task: `limit` and `seed` of `load_task`."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays of a task file that was read."""

    other_languages: list[str]
    tasks: dict[View, Task]


@dataclass(frozen=True, slots=True)
class SniDataset:
    """A download of the benchmark, whole or in part."""

    root: Path
    split: str = "default"
    views: tuple[View, ...] = ()
    """What `load` will be asked for: then a file is read once, for all of them, and no more of it is kept."""
    _kept: "dict[str, _Kept]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def names(self, part: Part) -> list[str]:
        """Task names of one part of the split, in the file's order; opens no task file.

        Raises:
            DataError: If a folder or the split file is missing, or if it names no task, one task twice or a
                task that is not there.
        """
        tasks = self.root / "tasks"
        if not tasks.is_dir():
            raise DataError(self.root, "tasks", "there is no such folder")
        path = self.root / "splits" / self.split / f"{part}_tasks.txt"
        names = [line.strip() for _, line in read_lines(path)]
        if not names:
            raise DataError(path, "", "names no task")
        _check_names(names, {file.stem for file in tasks.glob("*.json")}, path)
        return names

    def load(self, name: str, *, limit: int | None = None, seed: int | None = None) -> Task:
        """The task of that name; see `load_task`."""
        if (limit, seed) in self.views:
            return self._read(name).tasks[limit, seed]
        return load_task(self._path(name), limit=limit, seed=seed)

    def english(self, names: Iterable[str]) -> list[str]:
        """Those of `names` whose instruction, input and output are English; see `by_language`."""
        return self.by_language(names)[0]

    def by_language(self, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """The tasks of the benchmark's English track, and the other languages of those that are not in it.

        English goes by its name or its code, in upper or lower case. A file that does not state a language counts as
        English. Opens every file; see `views` for what is kept.

        Raises:
            DataError: See `load_task`; also if no task is English.
        """
        others = {name: ", ".join(self._read(name).other_languages) for name in names}
        english = [name for name, languages in others.items() if not languages]
        left_out = {name: languages for name, languages in others.items() if languages}
        if left_out and not english:
            name, languages = next(iter(left_out.items()))
            raise DataError(self.root, "", f"none of {len(left_out)} tasks is English (as {name}: {languages})")
        return english, left_out

    def chosen(self, part: Part, only: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The English tasks of a part and the other languages of the rest; of those asked for by name, where any are.

        Raises:
            ConfigError: a task that is not there, or one asked for by name that is not English.
            DataError: See `names` and `by_language`.
        """
        names = named(self.names(part), str, only)
        if not only:
            return self.by_language(names)
        for name in names:
            if languages := self._read(name).other_languages:
                raise ConfigError(f"{name}: is not of the English track ({', '.join(languages)}); it cannot be scored")
        return names, {}

    def _read(self, name: str) -> "_Kept":
        if name in self._kept:
            return self._kept[name]
        path = self._path(name)
        content = _read(path)
        found = _Kept(content.other_languages, {view: _task(path, content, *view) for view in self.views})
        if self.views:
            self._kept[name] = found
        return found

    def _path(self, name: str) -> Path:
        return self.root / "tasks" / f"{name}.json"


def load_task(path: Path, *, limit: int | None = None, seed: int | None = None) -> Task:
    """Read one task file.

    The instruction is the first definition, as in Tk-Instruct, and every positive example. Without a seed the
    first `limit` instances are taken in order, which is how test tasks are scored (the benchmark puts 100
    balanced instances first); with a seed, a random `limit` of them, which is how Tk-Instruct trains. The
    sample depends on the seed and the task's name only.

    Raises:
        DataError: If the file is not UTF-8 or JSON, lacks a field, has one of the wrong type, an empty
            definition, no instances, an empty input, a repeated id or nothing but empty outputs. Some empty output
            strings do occur in the benchmark and are kept.
    """
    return _task(path, _read(path), limit, seed)


def _task(path: Path, content: _TaskFile, limit: int | None, seed: int | None) -> Task:
    demonstrations = tuple(Demonstration(item.input, item.output) for item in content.demonstrations)
    return Task(
        name=path.stem,
        instruction=Instruction(content.definition[0].strip(), demonstrations),
        categories=tuple(content.categories),
        examples=[
            Example(item.id, item.input, tuple(item.output))
            for item in _take(content.instances, limit, None if seed is None else f"{seed} {path.stem}")
        ],
    )


def largest_categories(tasks: Iterable[Task], count: int) -> list[str]:
    """The `count` categories with the most tasks, in that order, ties by name (A.3, Table 10).

    A task counts in its first category.

    Raises:
        ConfigError: If there are fewer categories.
    """
    sizes = Counter(task.categories[0] for task in tasks)
    if count > len(sizes):
        raise ConfigError(f"data.categories: {count} are asked for, the training tasks have {len(sizes)}")
    return sorted(sizes, key=lambda name: (-sizes[name], name))[:count]


def overlapping_inputs(train: Iterable[Task], test: Iterable[Task]) -> dict[str, list[str]]:
    """Ids of the training rows whose input also is a test row's, by training task; case and spaces ignored.

    The official splits contain such rows; a figure without them is reported beside the official one.
    """
    tested = {_normalised(example) for task in test for example in task.examples}
    found = {task.name: [row.id for row in task.examples if _normalised(row) in tested] for task in train}
    return {name: ids for name, ids in found.items() if ids}


def without_overlap(test: Sequence[Task], train: Iterable[Task]) -> list[Task]:
    """The test tasks without the rows whose input also is a training row's, and without tasks of no other row."""
    seen = {name: set(ids) for name, ids in overlapping_inputs(test, train).items()}
    kept = (
        replace(task, examples=[row for row in task.examples if row.id not in seen.get(task.name, ())]) for task in test
    )
    return [task for task in kept if task.examples]


def _read(path: Path) -> _TaskFile:
    return parse_json(_TaskFile, read_text(path), path)


def _take(instances: list[_Instance], limit: int | None, seed: str | None) -> list[_Instance]:
    count = len(instances) if limit is None else min(limit, len(instances))
    return instances[:count] if seed is None else Random(seed).sample(instances, count)


def _check_names(names: Sequence[str], available: set[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(path, name, "is named twice")
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            raise DataError(path, name, "has no task file" + (f", did you mean {near[0]}?" if near else ""))
        seen.add(name)


def _normalised(example: Example) -> str:
    return " ".join(example.input.casefold().split())
