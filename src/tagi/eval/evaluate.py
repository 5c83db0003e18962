"""Predict and score tasks, with the right instruction and under the controls that show what was used of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from random import Random
from statistics import mode
from typing import Literal

import torch

from tagi import methods
from tagi.data.mixture import TaskGroup
from tagi.data.types import Instruction, Task
from tagi.errors import ConfigError, InputError
from tagi.eval.report import Prediction
from tagi.eval.rouge import exact_match, rouge_l
from tagi.infer.engine import Tagi, teacher_forced
from tagi.infer.scheduler import TOGETHER
from tagi.infer.search import GREEDY, GenerationConfig
from tagi.losses import cross_entropy
from tagi.model.adapter import TaskAdapter
from tagi.model.tagi import TagiModel

InstructionControl = Literal["aligned", "shuffled", "random", "empty", "prompt"]
"""Own instruction; another test task's; as many random words of the test instructions; none at all; or the language
model by itself, the own instruction in its prompt."""
AdapterControl = Literal["full", "lora_only", "memory_only", "other_lora"]
"""All of the adapter; LoRA without memory and fusion; memory and fusion without LoRA; another task's LoRA."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions and their scores, one each per example, as fractions."""

    predictions: list[Prediction]
    rouge_l: list[float]
    exact_match: list[float]

    @property
    def tasks(self) -> list[str]:
        """The task of every example: the clusters of an interval."""
        return [prediction.task for prediction in self.predictions]


def evaluate(
    tagi: Tagi,
    tasks: Sequence[Task],
    *,
    instruction: InstructionControl = "aligned",
    adapter: AdapterControl = "full",
    partners: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Solve every example of every task and score the answers.

    Args:
        partners: for each task the number of the one whose instruction (shuffled) or LoRA (other_lora) it
            gets; by default another one drawn from another category where there is one.
        progress: called with examples done and examples in all.

    Raises:
        ConfigError: a control that this method or this number of tasks does not allow.
        InputError: there is nothing to score.
    """
    _check(tagi, tasks, instruction, adapter)
    if instruction == "prompt":
        return evaluate(prompted(tagi), tasks, progress=progress)
    others = partners if partners is not None else draw_partners(tasks, seed)
    shown = instructions(tasks, instruction, others, seed)
    found: list[Prediction] = []
    total = sum(len(task.examples) for task in tasks)
    for group in _groups(tasks):
        some = [tasks[number] for number in group]
        told = _told(tagi, adapter, [shown[i] for i in group], [tasks[others[i]].instruction for i in group])
        before = len(found)
        report = None if progress is None else lambda done, _, before=before: progress(before + done, total)
        found += predictions(tagi, some, told, [shown[i] or Instruction("") for i in group], progress=report)
    return score(found)


def predictions(
    tagi: Tagi,
    tasks: Sequence[Task],
    told: Sequence[Instruction] | TaskAdapter,
    shown: Sequence[Instruction],
    *,
    generation: GenerationConfig = GREEDY,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Answers to all examples of some tasks, which share batches.

    Args:
        told: what the model is told of each task.
        shown: what the predictions say that it was told.
        progress: called with answers done and answers in all.
    """
    rows = [(number, example) for number, task in enumerate(tasks) for example in task.examples]
    inputs, owners = [example.input for _, example in rows], [number for number, _ in rows]
    answers = tagi.answer(told, inputs, tasks=owners, generation=generation, progress=progress)
    return [
        Prediction(tasks[i].name, tasks[i].categories, shown[i], example, answer.text, tasks[i].languages)
        for (i, example), answer in zip(rows, answers, strict=True)
    ]


def prompted(tagi: Tagi) -> Tagi:
    """The same language model by itself, which reads the instruction in its prompt with every input."""
    method, config = methods.get("no_ft"), tagi.config
    model = TagiModel(tagi.model.backbone, method, config.hypernetwork, config.fusion)
    return Tagi(model, tagi.tokenizer, config.model_copy(update={"method": method.name}))


@torch.inference_mode()
def target_loss(tagi: Tagi, tasks: Sequence[Task], told: Sequence[Instruction | None]) -> float:
    """Mean loss, in nats per target token, of all examples' first references where each task's model is told this.

    Own instructions against mismatched ones: where the two losses stay alike, the instruction is not read.
    """
    total = count = 0.0
    for task, instruction in zip(tasks, told, strict=True):
        shown = replace(task, instruction=instruction or Instruction(""))
        batch = tagi.collator([TaskGroup(shown, tuple(task.examples))]).to(tagi.device)
        loss = cross_entropy(teacher_forced(tagi.model, batch).logits, batch.labels)
        total, count = total + float(loss.total), count + float(loss.count)
    return total / count


def score(predictions: Sequence[Prediction]) -> Evaluation:
    """Every prediction against all of its references; ROUGE-L of a task that is not English is of its pieces."""
    return Evaluation(
        list(predictions),
        [rouge_l(one.text, one.example.targets, pieces=bool(one.languages.others)) for one in predictions],
        [exact_match(one.text, one.example.targets) for one in predictions],
    )


def instructions(
    tasks: Sequence[Task], control: InstructionControl, partners: Sequence[int], seed: int
) -> list[Instruction | None]:
    """What each task's model is told under a control; None is the bare model."""
    if control in ("aligned", "prompt"):
        return [task.instruction for task in tasks]
    if control == "shuffled":
        return [tasks[partner].instruction for partner in partners]
    if control == "empty":
        return [None] * len(tasks)
    words = [word for task in tasks for word in task.instruction.definition.split()]
    rng = Random(seed)
    lengths = [len(task.instruction.definition.split()) for task in tasks]
    return [Instruction(" ".join(rng.choices(words, k=length))) for length in lengths]


def draw_partners(tasks: Sequence[Task], seed: int) -> list[int]:
    """For each task another one, of another category where there is one."""
    rng = Random(seed)
    chosen: list[int] = []
    for number, task in enumerate(tasks):
        others = [i for i in range(len(tasks)) if i != number]
        far = [i for i in others if not set(tasks[i].categories) & set(task.categories)]
        chosen.append(rng.choice(far or others or [number]))
    return chosen


def reference_points(tasks: Sequence[Task]) -> dict[str, Evaluation]:
    """What costs no model at all: the input, the first demonstration's output, the task's commonest answer."""

    def scored(answers: Callable[[Task], Iterable[str]]) -> Evaluation:
        return score(
            [
                Prediction(task.name, task.categories, task.instruction, example, text, task.languages)
                for task in tasks
                for example, text in zip(task.examples, answers(task), strict=False)  # some repeat without end
            ]
        )

    return {
        "copy_input": scored(lambda task: (one.input for one in task.examples)),
        "copy_demonstration": scored(
            lambda task: repeat(next((shown.output for shown in task.instruction.demonstrations), ""))
        ),
        "majority": scored(lambda task: repeat(mode(one.targets[0] for one in task.examples))),
    }


def _groups(tasks: Sequence[Task]) -> Iterator[list[int]]:
    """Tasks, by number, that are answered together: enough to fill batches, and not all, whose adapters take memory."""
    group: list[int] = []
    for number in range(len(tasks)):
        group.append(number)
        if sum(len(tasks[one].examples) for one in group) >= TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _told(
    tagi: Tagi, control: AdapterControl, own: Sequence[Instruction | None], other: Sequence[Instruction]
) -> Sequence[Instruction] | TaskAdapter:
    """What the model is told of some tasks, under a control of its adapters."""
    given = [one for one in own if one is not None]
    if not given:
        return tagi.neutral(len(own))
    if control == "full":
        return given
    adapter = tagi.adapt_all(given)
    if control == "lora_only":
        return adapter.without_instruction()
    if control == "memory_only":
        return adapter.without_modules()
    return adapter.with_modules_of(tagi.adapt_all(other))


def check_tasks(tasks: Sequence[Task], takes_from_another: bool) -> None:
    """Refuse to begin where nothing would be scored, or where a control takes something from another task.

    Raises:
        InputError: there is no task, or one without an example.
        ConfigError: there is no other task.
    """
    if not tasks:
        raise InputError("nothing is left to score: there is no task")
    if empty := [task.name for task in tasks if not len(task.examples)]:
        raise InputError(f"nothing is left to score of {empty[0]}: it has no example")
    if takes_from_another and len(tasks) < 2:
        raise ConfigError("a task cannot be its own mismatched: this control needs at least two tasks")


def _check(tagi: Tagi, tasks: Sequence[Task], instruction: InstructionControl, adapter: AdapterControl) -> None:
    method = tagi.model.method
    modules = method.writes or method.one_lora
    if adapter != "full" and not (modules and (method.fuses_encoder or method.fuses_decoder)):
        raise ConfigError(f"adapter: {adapter} needs a method with generated modules and memory; {method.name} is none")
    check_tasks(tasks, instruction == "shuffled" or adapter == "other_lora")
