"""How long real tasks are, in tokens."""

from dataclasses import replace
from statistics import fmean

from tagi.cost.task import TaskLengths

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
