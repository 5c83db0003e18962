"""What systems spend on real tasks: FLOPs from the token lengths of Super-NaturalInstructions, by formula."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from tagi import methods
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig, T5Shape
from tagi.data.collate import Collator
from tagi.data.prompts import render_demonstration
from tagi.data.types import Task
from tagi.methods import METHODS, Method
from tagi.model import costs
from tagi.model.costs import TaskLengths

REFERENCE = "metatrain"


@dataclass(frozen=True, slots=True)
class SystemCost:
    """A system's FLOPs over some tasks of 100 examples each, on average and against the two references."""

    name: str
    adaptation: float
    """Mean over tasks."""
    answering: float
    """Mean over tasks."""
    mean_of_ratios: float
    """To metatraining without demonstrations beyond the setting's, task by task."""
    ratio_of_sums: float
    over_floor: float
    """Ratio of sums to the model that reads the inputs only."""


def lengths_of(task: Task, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig) -> TaskLengths:
    """Mean token lengths of a task's texts, cut at the prompt's limits."""
    collator = Collator(tokenizer, prompt.model_copy(update={"positives": 0}), methods.get("tagi"))
    shown = [render_demonstration(one, style=prompt.style) for one in task.instruction.positives]
    inputs = [len(collator.input(None, one.input)) for one in task.examples]
    targets = [len(collator.target(one.targets[0])) for one in task.examples]
    return TaskLengths(
        instruction=len(collator.instruction(task.instruction)),
        demonstration=round(fmean(len(tokenizer(text)["input_ids"]) for text in shown)) if shown else 0,
        shots=min(prompt.positives, len(shown)),
        input=round(fmean(inputs)),
        target=round(fmean(targets)),
    )


def system_costs(
    shape: T5Shape,
    generator: HypernetworkConfig,
    fused: FusionConfig,
    tasks: Sequence[TaskLengths],
    systems: Iterable[Method] = METHODS,
) -> list[SystemCost]:
    """Every system on the same tasks; a decoder-only one of the same widths and as many blocks."""
    floors = [costs.floor(shape, task) for task in tasks]
    spent = {
        method.name: [
            costs.task_flops(costs.as_deep(shape) if method.decoder_only else shape, method, generator, fused, task)
            for task in tasks
        ]
        for method in systems
    }
    base = [one.total for one in spent[REFERENCE]]
    return [
        SystemCost(
            name=name,
            adaptation=fmean(one.adaptation for one in each),
            answering=fmean(one.answering for one in each),
            mean_of_ratios=fmean(one.total / other for one, other in zip(each, base, strict=True)),
            ratio_of_sums=sum(one.total for one in each) / sum(base),
            over_floor=sum(one.total for one in each) / sum(floors),
        )
        for name, each in spent.items()
    ]


def mean_task(tasks: Sequence[TaskLengths]) -> TaskLengths:
    """One task of mean lengths."""
    each = {name: round(value) for name, value in mean_lengths(tasks).items() if name != "tasks"}
    return TaskLengths(**each)


def mean_lengths(tasks: Sequence[TaskLengths]) -> dict[str, Any]:
    """The token lengths that a table rests on."""
    names = ("instruction", "demonstration", "shots", "input", "target")
    return {name: fmean(getattr(task, name) for task in tasks) for name in names} | {"tasks": len(tasks)}
