"""Rank classification: the most likely of an example's choices is its answer; accuracy by prompt, then task (§4.1)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean
from typing import TypeVar

from tagi.config import RankNorm
from tagi.data.types import Instruction, Task
from tagi.errors import InputError
from tagi.eval.evaluate import InstructionControl, check_tasks, draw_partners, instructions, prompted
from tagi.eval.report import Interval, Prediction, bootstrap
from tagi.infer.choices import likeliest
from tagi.infer.engine import Tagi

Key = TypeVar("Key")
ANLI = ("anli-r1", "anli-r2", "anli-r3")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Means of means: examples of a prompt, prompts of a task, tasks."""

    by_prompt: dict[str, float]
    by_task: dict[str, float]
    mtest11: float
    """Over the tasks that were scored, ANLI's rounds apart."""
    hypert5: float | None
    """As HyperTuning reports it: without StoryCloze, ANLI as one task; None where nothing else was scored."""
    interval: Interval | None
    """Of `mtest11`, over tasks; None where there is a single one."""


def rank(
    tagi: Tagi,
    tasks: Sequence[Task],
    *,
    instruction: InstructionControl = "aligned",
    norm: RankNorm = "mean",
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Choose for every example of every task: one prompt of a held-out task, which is the task's first category.

    Args:
        progress: called with tasks done and tasks in all.

    Raises:
        ConfigError: a control that this number of tasks does not allow.
        InputError: there is nothing to score, an example has no choices, or the model gives no numbers for them.
    """
    check_tasks(tasks, instruction == "shuffled")
    told_each = instructions(tasks, instruction, draw_partners(tasks, seed=0), seed=0)
    tagi = prompted(tagi) if instruction == "prompt" else tagi
    predictions: list[Prediction] = []
    for number, (task, told) in enumerate(zip(tasks, told_each, strict=True)):
        inputs, choices = [one.input for one in task.examples], [one.choices for one in task.examples]
        scores = tagi.score_choices(told, inputs, choices, norm=norm)
        if any(isnan(value) for each in scores for value in each):
            raise InputError(f"{task.name}: the model's likelihoods are not a number; are its weights damaged?")
        best = [likeliest(own, each) for own, each in zip(choices, scores, strict=True)]
        predictions += [
            Prediction(task.name, task.categories, told or Instruction(""), example, text)
            for example, text in zip(task.examples, best, strict=True)
        ]
        if progress is not None:
            progress(number + 1, len(tasks))
    return predictions


def accuracy(predictions: Sequence[Prediction]) -> Accuracy:
    """Accuracy by prompt, by task as the mean of its prompts, and over tasks."""
    prompts = _means(((one.categories[0], one.task), one.text == one.example.targets[0]) for one in predictions)
    tasks = _means((task, value) for (task, _), value in prompts.items())
    interval = bootstrap(list(tasks.values()), list(tasks), seed=0) if len(tasks) > 1 else None
    each = {prompt: value for (_, prompt), value in prompts.items()}
    return Accuracy(each, tasks, fmean(tasks.values()), hypert5_average(tasks), interval)


def hypert5_average(by_task: Mapping[str, float]) -> float | None:
    """Mean over tasks without StoryCloze, ANLI's rounds counted as one task by their mean (Table 9)."""
    rest = [value for task, value in by_task.items() if task not in (*ANLI, "story_cloze")]
    anli = [value for task, value in by_task.items() if task in ANLI]
    counted = [*rest, *([fmean(anli)] if anli else [])]
    return fmean(counted) if counted else None


def chance(tasks: Sequence[Task]) -> float:
    """Expected accuracy of a uniform choice, averaged as `accuracy` averages."""
    each = ((task.categories[0], fmean(1 / len(one.choices) for one in task.examples)) for task in tasks)
    return fmean(_means(each).values())


def majority(tasks: Sequence[Task]) -> float:
    """Accuracy of always choosing the place where the right choice stands most often, in each prompt by itself."""
    places = [(task, Counter(one.choices.index(one.targets[0]) for one in task.examples)) for task in tasks]
    each = ((task.categories[0], max(counts.values()) / len(task.examples)) for task, counts in places)
    return fmean(_means(each).values())


def _means(pairs: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The mean of the values of every key."""
    groups: defaultdict[Key, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: fmean(values) for key, values in groups.items()}
