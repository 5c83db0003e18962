"""How long real tasks are, in tokens, and what each system reads of them."""

from dataclasses import dataclass, replace
from statistics import fmean

from tagi.methods import Method


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """Tokens of one task's texts."""

    instruction: int
    """The definition by itself."""
    demonstration: int
    """One demonstration, on average."""
    shots: int
    """Demonstrations that are read."""
    input: int
    """One input with whatever stands around it."""
    target: int
    examples: int = 100


# The 17 English test tasks of Super-NaturalInstructions that are at hand: first 100 instances, Tk-Instruct's prompts,
# 8,000 unigram pieces trained on the training tasks. The third number is how many demonstrations a task has.
_SNI = (
    (77, 40, 7, 39, 3), (38, 48, 3, 34, 16), (319, 46, 3, 38, 16), (30, 106, 2, 99, 9), (39, 43, 4, 29, 18),
    (53, 63, 3, 47, 17), (74, 43, 3, 45, 2), (46, 423, 3, 287, 24), (244, 48, 3, 25, 14), (63, 82, 4, 78, 5),
    (63, 57, 3, 40, 4), (47, 241, 2, 258, 7), (56, 47, 3, 26, 17), (33, 831, 4, 569, 34), (74, 182, 2, 174, 6),
    (34, 115, 3, 143, 4), (66, 68, 2, 38, 27),
)  # fmt: skip


def sni_tasks(shots: int) -> list[TaskLengths]:
    """Super-NaturalInstructions' test tasks, each read with so many of its demonstrations at most."""
    each = (TaskLengths(*lengths) for lengths in _SNI)
    return [replace(one, shots=min(one.shots, shots)) for one in each]


def mean_task(shots: int) -> TaskLengths:
    """One task of the test tasks' mean lengths."""
    tasks = sni_tasks(shots)
    names = ("instruction", "demonstration", "shots", "input", "target")
    return TaskLengths(**{name: round(fmean(getattr(task, name) for task in tasks)) for name in names})


@dataclass(frozen=True, slots=True)
class Reading:
    """How long the texts are that a system reads, in tokens."""

    once: int
    """Of what is read once per task."""
    pieces: int
    """Parts of it that are encoded apart."""
    prompt: int
    """Of what the language model reads for one example."""
    prompts: int
    """Such texts of one example, whose predictions are averaged."""


def reading(method: Method, task: TaskLengths) -> Reading:
    """What a system reads of a task."""
    shown = task.shots * task.demonstration
    if not method.prompt:
        return Reading(task.instruction + shown if method.reads_instruction_once else 0, 1, task.input, 1)
    alone = task.instruction + task.input
    if method.demonstrations == "fused":
        return Reading(shown, max(task.shots, 1), alone, 1)
    if method.demonstrations == "averaged" and task.shots:
        return Reading(0, 1, alone + task.demonstration, task.shots)
    return Reading(0, 1, alone + shown, 1)
