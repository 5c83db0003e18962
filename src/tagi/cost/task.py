"""FLOPs of solving one task: what is done once for it, and what its inputs cost, for every system (Figure 4).

A task is an instruction, demonstrations and inputs of given lengths, in tokens; answers are decoded token by token with
cached keys and values. Matrix products only.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from tagi.backbones.base import Backbone
from tagi.backbones.rows import Rows
from tagi.cost.counting import flops
from tagi.methods import Method
from tagi.model.tagi import TagiModel


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """Tokens of one task's texts."""

    instruction: int
    """The definition by itself."""
    demonstration: int
    """One demonstration."""
    shots: int
    """Demonstrations that are read."""
    input: int
    """One input with whatever stands around it."""
    target: int
    examples: int = 100


class TaskFlops(NamedTuple):
    """FLOPs of a task."""

    adaptation: int
    """Once: reading the instruction, generating modules, preparing keys and values."""
    answering: int
    """All examples."""


class Reading(NamedTuple):
    """How long the texts are that a method reads, in tokens."""

    once: int
    """Of what is read once per task."""
    pieces: int
    """Parts of it that are encoded apart."""
    prompt: int
    """Of what the language model reads for one example."""
    prompts: int
    """Such texts of one example, whose predictions are averaged."""


def reading(method: Method, task: TaskLengths) -> Reading:
    """What a method reads of a task."""
    shown = task.shots * task.demonstration
    if not method.prompt:
        return Reading(task.instruction + shown if method.reads_instruction_once else 0, 1, task.input, 1)
    alone = task.instruction + task.input
    if method.apart:
        return Reading(shown, task.shots, alone, 1)
    if method.demonstrations == "averaged" and task.shots:
        return Reading(0, 1, alone + task.demonstration, task.shots)
    return Reading(0, 1, alone + shown, 1)


@torch.inference_mode()
def count_task(model: TagiModel, task: TaskLengths) -> TaskFlops:
    """What a model spends on a task, every answer of full length (Table 2: 100 examples); it may be a meta model."""
    reads = reading(model.method, task)
    backbone = cast(Backbone, model.backbone)
    rows, device = Rows(1, task.examples * reads.prompts), backbone.embedding.weight.device
    told = torch.ones(1, reads.once, dtype=torch.long, device=device)
    told = told.unflatten(1, (reads.pieces, task.demonstration)) if model.method.apart else told
    inputs = torch.ones(rows.count, reads.prompt, dtype=torch.long, device=device)
    once, made = flops(lambda: model.prepare(model.adapt(told, torch.ones_like(told).bool())))
    begun, (_, cache) = flops(lambda: backbone.begin(inputs, torch.ones_like(inputs).bool(), prepared=made, rows=rows))
    first, (_, cache) = flops(lambda: backbone.step(inputs[:, 0], cache))
    second, _ = flops(lambda: backbone.step(inputs[:, 0], cache))
    steps = task.target - 1  # the first token comes with the input; each step attends to one token more
    return TaskFlops(once, begun + steps * first + steps * (steps - 1) // 2 * (second - first))
