"""P3 as T0 uses it (Sanh et al., 2022): training rows by template, and held-out tasks with their evaluation prompts.

A folder holds `train/<data set>_<template>.jsonl[.gz]` (rows rendered already), `templates/` (PromptSource's YAML) and
`eval/<task>.jsonl` (raw rows of the held-out tasks). Listing opens no row file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from tagi.config import P3Instruction
from tagi.data.promptsource import Template, file_name, masked, read_templates, render
from tagi.data.records import Record, parse_json
from tagi.data.types import Demonstration, Example, Instruction, Task, taken
from tagi.errors import ConfigError, DataError
from tagi.reading import json_value, read_lines

MAX_ROWS = 1_000
"""Rows of a template (A.2)."""
SPLITS = {
    "5": ("cosmos_qa", "kilt_tasks/hotpotqa", "amazon_polarity", "cnn_dailymail/3.0.0", "common_gen"),
    "10": ("glue/mrpc", "adversarial_qa/dbert", "ag_news", "dream", "gigaword"),
    "20": (
        *("paws/labeled_final", "wiki_qa", "ropes", "quoref", "dbpedia_14"),
        *("multi_news", "imdb", "quail", "quartz", "wiki_bio"),
    ),
    "36": (
        *("adversarial_qa/dbidaf", "adversarial_qa/droberta", "duorc/SelfRC", "duorc/ParaphraseRC", "cos_e/v1.11"),
        *("qasc", "sciq", "glue/qqp", "social_i_qa", "wiki_hop/original", "wiqa"),
        *("app_reviews", "rotten_tomatoes", "yelp_review_full", "samsum", "xsum"),
    ),
}
"""T0's 36 training sets; each split holds those before it too (Table 11)."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out task: where its templates lie, what is right in a row, and where its rows are published."""

    templates: str
    labels: tuple[int | str, ...]
    """All that `field` can be. Templates do not check it: of what is published without labels (-1 or an empty string in
    their place) they make some answer or other."""
    repository: str = ""
    config: str | None = None
    split: str = "validation"
    """T0 is scored on validation rows."""
    field: str = "label"


_SUPER_GLUE = "aps/super_glue"
EVALUATION: Mapping[str, HeldOut] = {
    "anli-r1": HeldOut("anli", (0, 1, 2), "facebook/anli", split="dev_r1"),
    "anli-r2": HeldOut("anli", (0, 1, 2), "facebook/anli", split="dev_r2"),
    "anli-r3": HeldOut("anli", (0, 1, 2), "facebook/anli", split="dev_r3"),
    "hellaswag": HeldOut("hellaswag", ("0", "1", "2", "3", 0, 1, 2, 3), "Rowan/hellaswag"),
    "super_glue_cb": HeldOut("super_glue/cb", (0, 1, 2), _SUPER_GLUE, "cb"),
    "super_glue_copa": HeldOut("super_glue/copa", (0, 1), _SUPER_GLUE, "copa"),
    "super_glue_rte": HeldOut("super_glue/rte", (0, 1), _SUPER_GLUE, "rte"),
    "super_glue_wic": HeldOut("super_glue/wic", (0, 1), _SUPER_GLUE, "wic"),
    "super_glue_wsc.fixed": HeldOut("super_glue/wsc.fixed", (0, 1), _SUPER_GLUE, "wsc.fixed"),
    "winogrande_winogrande_xl": HeldOut(
        "winogrande/winogrande_xl", ("1", "2"), "allenai/winogrande", "winogrande_xl", field="answer"
    ),
    "story_cloze": HeldOut("story_cloze/2016", (1, 2), field="answer_right_ending"),
}
"""By name; StoryCloze may not be redistributed."""
_SUFFIXES = (".jsonl.gz", ".jsonl")


class _Row(Record):
    """A row of P3's training part."""

    inputs_pretokenized: str
    targets_pretokenized: str


@dataclass(frozen=True, slots=True)
class TrainSet:
    """The rows of one template in one data set."""

    name: str
    data_set: str
    template: Template
    path: Path


@dataclass(frozen=True)
class P3Dataset:
    """A folder of P3, whole or in part."""

    root: Path
    split: str = "36"
    instruction: P3Instruction = "template"

    @cached_property
    def templates(self) -> dict[str, list[Template]]:
        """Templates by data set (`super_glue/copa`); a DataError where there are none, or a file is damaged."""
        folder = self.root / "templates"
        files = sorted(folder.rglob("templates.yaml"))
        if not files:
            raise DataError(folder, "", "holds no templates.yaml")
        return {path.parent.relative_to(folder).as_posix(): read_templates(path) for path in files}

    def train_sets(self) -> list[TrainSet]:
        """The row files of the split, each with its template, by name.

        Raises:
            ConfigError: an unknown split.
            DataError: there is no row file, or one whose template is not there.
        """
        wanted, resolved = data_sets(self.split), self.by_file_name()
        files = sorted(path for path in (self.root / "train").glob("*") if path.name.endswith(_SUFFIXES))
        found: list[TrainSet] = []
        for path in files:
            name = path.name.removesuffix(".gz").removesuffix(".jsonl")
            if name not in resolved:
                raise DataError(path, "", "belongs to no template of templates/")
            found.append(TrainSet(name, *resolved[name], path))
        chosen = [one for one in found if wanted is None or one.data_set in wanted]
        if not chosen:
            raise DataError(self.root / "train", "", f"holds no rows of split {self.split} (*.jsonl or *.jsonl.gz)")
        return chosen

    def train_tasks(self, one: TrainSet, *, limit: int | None = MAX_ROWS, seed: int | None = None) -> list[Task]:
        """The task of one template, or with `instruction="full"` one task for each of its rows.

        Without a seed these are the first `limit` rows; with one, that many drawn by seed and name.

        Raises:
            DataError: a row that is not JSON or lacks a field, or a template that cannot be rendered.
        """
        examples = taken(list(_train_rows(one.path)), limit, None if seed is None else f"{seed} {one.name}")
        return self._tasks(one.name, one.data_set, one.template, examples)

    def eval_tasks(self, name: str, *, limit: int | None = None, shots: int = 0, seed: int = 0) -> list[Task]:
        """One held-out task under each of T0's evaluation prompts: those that ask for the original task.

        A task is named `held-out task/prompt`, its category is the held-out task. Rows to which a prompt does not apply
        are left out, and prompts that apply to none. The first `limit` rows are scored, and `shots` demonstrations are
        drawn by seed from those behind them; without a limit all rows are scored but those that any prompt of the task
        shows as a demonstration. So no row, nor another with the same input, is shown under one prompt and scored under
        any.

        Raises:
            ConfigError: no such task, or too few rows are left for the demonstrations.
            DataError: its rows are not there, a row is damaged or has no label, a template cannot be rendered with it,
                or no prompt applies to any row.
        """
        if name not in EVALUATION:
            raise ConfigError(f"p3: {name!r} is no held-out task; there are {', '.join(EVALUATION)}")
        path = self.root / "eval" / f"{name}.jsonl"
        rows = list(islice(_labelled(path, name), None if shots else limit))
        if not rows:
            raise DataError(path, "", "holds no row")
        numbers = [number for number, _ in rows]
        asked = numbers if limit is None else numbers[:limit]
        prompts = [one for one in self.templates.get(EVALUATION[name].templates, []) if one.original_task]
        rendered = {one: examples for one in prompts if (examples := _rendered(one, rows, path))}
        rendered = {one: examples for one, examples in rendered.items() if any(row.id in asked for row in examples)}
        if not rendered:
            folder = self.root / "templates" / EVALUATION[name].templates
            raise DataError(folder, "", f"has no prompt for the rows of {path.name}")
        tasks: list[Task] = []
        for template, shown, scored in _apart(rendered, numbers, limit, shots, f"{seed} {name}"):
            if len(shown) < shots or not scored:
                raise ConfigError(
                    f"prompt.demonstrations: {shots} are asked for, but of the {len(numbers)} rows of {path} "
                    f"too few are left for {template.name!r} beside those that are scored; show or score fewer"
                )
            demonstrations = tuple(Demonstration(one.input, one.targets[0]) for one in shown)
            made = self._tasks(f"{name}/{template.name}", name, template, scored)
            tasks += [replace(one, instruction=replace(one.instruction, demonstrations=demonstrations)) for one in made]
        return tasks

    def eval_names(self) -> list[str]:
        """The held-out tasks of `EVALUATION` whose rows are here; a DataError where there is none."""
        here = [name for name in EVALUATION if (self.root / "eval" / f"{name}.jsonl").exists()]
        if not here:
            raise DataError(self.root / "eval", "", "holds no held-out task (such as super_glue_rte.jsonl)")
        return here

    def eval_texts(self) -> Iterator[str]:
        """Every text of the held-out rows that are here, field by field; a DataError where a row is damaged."""
        for path in (self.root / "eval" / f"{name}.jsonl" for name in EVALUATION):
            if path.exists():
                for _, row in _raw_rows(path):
                    yield from _texts(row)

    def _tasks(self, name: str, category: str, template: Template, examples: Sequence[Example]) -> list[Task]:
        if self.instruction == "template":
            return [Task(name, Instruction(masked(template)), (category,), examples)]
        return [Task(name, Instruction(one.input), (category,), [one]) for one in examples]

    def by_file_name(self) -> dict[str, tuple[str, Template]]:
        """Data set and template by the name that P3 gives to their rows."""
        return {
            file_name(data_set, one.name): (data_set, one) for data_set, each in self.templates.items() for one in each
        }


def data_sets(split: str) -> set[str] | None:
    """The data sets of a split and of the smaller ones; None for `all`; a ConfigError where there is no such split."""
    if split == "all":
        return None
    if split not in SPLITS:
        raise ConfigError(f"data.split: P3 has no split {split!r}; there are {', '.join(SPLITS)} and all")
    upto = list(SPLITS).index(split) + 1
    return {name for one in list(SPLITS)[:upto] for name in SPLITS[one]}


def _train_rows(path: Path) -> Iterator[Example]:
    """The rows that ask and answer something; some published rows are empty on one side."""
    for number, line in read_lines(path):
        row = parse_json(_Row, line, path, f"line {number}")
        source, target = row.inputs_pretokenized.strip(), row.targets_pretokenized.strip()
        if source and target:
            yield Example(f"{number}", source, (target,))


def _raw_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        row = json_value(line, path, f"line {number}")
        if not isinstance(row, dict):
            raise DataError(path, f"line {number}", "must be a JSON object")
        yield f"{number}", row


def _texts(value: Any) -> Iterator[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _texts(inside)


def _labelled(path: Path, task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a held-out task, each with a label that the task has."""
    field, allowed = EVALUATION[task].field, EVALUATION[task].labels
    for number, row in _raw_rows(path):
        label = row.get(field)
        if not any(type(label) is type(one) and label == one for one in allowed):
            found = f"{field} is {json.dumps(label)[:80]}" if field in row else f"there is no {field}"
            said = " or ".join(json.dumps(one) for one in allowed)
            raise DataError(path, "", f"row {number} has no label: {found}, and must be {said}")
        yield number, row


def _rendered(template: Template, rows: list[tuple[str, dict[str, Any]]], path: Path) -> list[Example]:
    found: list[Example] = []
    for number, row in rows:
        try:
            made = render(template, row, seed=number)
        except DataError as error:
            raise DataError(error.path, error.field, f"{error.reason}, with row {number} of {path}") from error
        if made is not None and not made.choices:
            raise DataError(template.source, f"{template.name}: answer_choices", f"row {number} has no choices to rank")
        if made is not None:
            found.append(Example(number, made.input, (made.target,), made.choices))
    return found


def _apart(
    rendered: Mapping[Template, Sequence[Example]], numbers: Sequence[str], limit: int | None, shots: int, seed: str
) -> list[tuple[Template, list[Example], list[Example]]]:
    """Every prompt of a held-out task with the rows that it shows and those that are scored; see `eval_tasks`."""
    asked = set() if limit is None else set(numbers[:limit])
    spare = [number for number in numbers if number not in asked]
    Random(seed).shuffle(spare)
    shown = [_demonstrations(examples, asked, spare, shots) for examples in rendered.values()]
    if limit is None:
        asked = set(numbers) - {one.id for each in shown for one in each}
    apart: list[tuple[Template, list[Example], list[Example]]] = []
    for (template, examples), those in zip(rendered.items(), shown, strict=True):
        told = {one.input for one in those}
        apart.append((template, those, [one for one in examples if one.id in asked and one.input not in told]))
    return apart


def _demonstrations(examples: Sequence[Example], asked: Set[str], spare: Sequence[str], count: int) -> list[Example]:
    """The first `count` examples in the order of the `spare` rows, none with the input of a row that is asked."""
    inputs, by_row = {one.input for one in examples if one.id in asked}, {one.id: one for one in examples}
    found = (by_row[number] for number in spare if number in by_row)
    return list(islice((one for one in found if one.input not in inputs), count))
