"""Rank classification: the most likely of an example's choices is its answer; accuracy by prompt, then task (§4.1)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean

from tagi.config import RankNorm
from tagi.data.types import Instruction, Task
from tagi.errors import InputError
from tagi.eval.evaluate import InstructionControl, check_partners, check_some, draw_partners, instructions, prompted
from tagi.eval.report import Interval, Prediction, bootstrap
from tagi.infer.choices import likeliest
from tagi.infer.engine import Tagi

ANLI = ("anli-r1", "anli-r2", "anli-r3")
MTEST11 = (
    *ANLI,
    "hellaswag",
    "super_glue_cb",
    "super_glue_copa",
    "super_glue_rte",
    "super_glue_wic",
    "super_glue_wsc.fixed",
    "winogrande_winogrande_xl",
    "story_cloze",
)
"""The held-out tasks of T0's evaluation, ANLI's three rounds apart."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Predictions of a rank classification and whether each is right, one each per example.

    A prediction's first category is its held-out task, its `task` one prompt of it.
    """

    predictions: list[Prediction]

    @property
    def right(self) -> list[float]:
        """1.0 where the choice is the right one."""
        return [float(one.text == one.example.targets[0]) for one in self.predictions]


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
    partners: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Choose for every example of every task (one prompt of a held-out task each).

    Args:
        partners: for each task the number of the one whose instruction it gets under `shuffled`.
        progress: called with tasks done and tasks in all.

    Raises:
        ConfigError: a control that this number of tasks does not allow.
        InputError: there is nothing to score, an example has no choices, or the model gives no numbers for them.
    """
    check_some(tasks)
    check_partners(tasks, instruction == "shuffled")
    others = partners if partners is not None else draw_partners(tasks, seed)
    tagi = prompted(tagi) if instruction == "prompt" else tagi
    predictions: list[Prediction] = []
    for number, (task, told) in enumerate(zip(tasks, instructions(tasks, instruction, others, seed), strict=True)):
        inputs, choices = [one.input for one in task.examples], [one.choices for one in task.examples]
        scores = tagi.score_choices(told, inputs, choices, norm=norm)
        if any(isnan(value) for each in scores for value in each):
            raise InputError(f"{task.name}: the model's likelihoods are not a number; are its weights damaged?")
        best = [likeliest(own, each) for own, each in zip(choices, scores, strict=True)]
        predictions += _predictions(task, told, best)
        if progress is not None:
            progress(number + 1, len(tasks))
    return Ranking(predictions)


def accuracy(ranking: Ranking, *, seed: int = 0) -> Accuracy:
    """Accuracy by prompt, by task as the mean of its prompts, and over tasks."""
    prompts: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for one, right in zip(ranking.predictions, ranking.right, strict=True):
        prompts[one.categories[0], one.task].append(right)
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for (task, _), values in prompts.items():
        by_task[task].append(fmean(values))
    means = {task: fmean(values) for task, values in by_task.items()}
    interval = bootstrap(list(means.values()), list(means), seed=seed) if len(means) > 1 else None
    each = {prompt: fmean(values) for (_, prompt), values in prompts.items()}
    return Accuracy(each, means, fmean(means.values()), hypert5_average(means), interval)


def hypert5_average(by_task: Mapping[str, float]) -> float | None:
    """Mean over tasks without StoryCloze, ANLI's rounds counted as one task by their mean (Table 9)."""
    rest = [value for task, value in by_task.items() if task not in (*ANLI, "story_cloze")]
    anli = [value for task, value in by_task.items() if task in ANLI]
    counted = [*rest, *([fmean(anli)] if anli else [])]
    return fmean(counted) if counted else None


def chance(tasks: Sequence[Task]) -> float:
    """Expected accuracy of a uniform choice, averaged as `accuracy` averages."""
    return _averaged(tasks, lambda task: fmean(1 / len(one.choices) for one in task.examples))


def majority(tasks: Sequence[Task]) -> float:
    """Accuracy of always choosing the place where the right choice stands most often, in each prompt by itself."""
    return _averaged(tasks, _majority)


def _majority(task: Task) -> float:
    places = Counter(one.choices.index(one.targets[0]) for one in task.examples)
    return places.most_common(1)[0][1] / len(task.examples)


def _averaged(tasks: Sequence[Task], value: Callable[[Task], float]) -> float:
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for task in tasks:
        by_task[task.categories[0]].append(value(task))
    return fmean(fmean(values) for values in by_task.values())


def _predictions(task: Task, told: Instruction | None, texts: Sequence[str]) -> list[Prediction]:
    shown = told or Instruction("")
    pairs = zip(task.examples, texts, strict=True)
    return [Prediction(task.name, task.categories, shown, example, text) for example, text in pairs]
