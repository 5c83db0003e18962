"""Count what every system spends on a task of 100 examples, at the lengths of SNI's test tasks."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.progress import track

from benchmarks.command import Rows, parser, run, show
from benchmarks.lengths import sni_tasks
from benchmarks.models import SYSTEMS, Setup, shape_of
from tagi.cost.task import TaskFlops, count_task

REFERENCE, FLOOR = "metatrain", "no_instruction"
Spent = Mapping[str, Sequence[TaskFlops]]
"""By system and task."""


def compared(spent: Spent) -> Rows:
    """Means over the tasks in GFLOPs; ratios to metatraining task by task, and of the sums; sums over the bound's."""
    totals = {name: [sum(one) for one in each] for name, each in spent.items()}
    return [
        {
            "": name,
            "once": fmean(once for once, _ in spent[name]) / 1e9,
            "answers": fmean(answers for _, answers in spent[name]) / 1e9,
            "mean ratio": fmean(own / other for own, other in zip(each, totals[REFERENCE], strict=True)),
            "sum ratio": sum(each) / sum(totals[REFERENCE]),
            "to the lower bound": sum(each) / sum(totals[FLOOR]),
        }
        for name, each in totals.items()
    ]


def main(asked: Namespace) -> None:
    """Compare the systems asked for, the two references among them."""
    setup, tasks = Setup(shape_of(asked.shape), hidden=asked.hidden, width=asked.width or None), sni_tasks(asked.shots)
    spent: dict[str, list[TaskFlops]] = {}
    for name in dict.fromkeys((REFERENCE, FLOOR, *asked.system)):
        model = setup.models(name)[0].to("meta")
        spent[name] = [count_task(model, task) for task in track(tasks, name, transient=True)]
    show(asked, [], {f"{asked.shape}, {asked.shots} demonstrations, GFLOPs": compared(spent)})


OPTIONS = parser(__doc__, shape="t5-base", shots=0, hidden=128, width=0, system=SYSTEMS)
if __name__ == "__main__":
    run(main, OPTIONS)
