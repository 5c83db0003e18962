"""Count what every system spends on a task of 100 examples, at the lengths of SNI's test tasks."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from rich.progress import track
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import Rows, parser, run, show
from benchmarks.lengths import TaskLengths, reading, sni_tasks
from benchmarks.models import SYSTEMS, Setup, instructions, shape_of, steps
from tagi.config import DecoderShape
from tagi.errors import ConfigError
from tagi.model.tagi import TagiModel

REFERENCE, FLOOR = "metatrain", "no_instruction"
Spent = Mapping[str, Sequence[tuple[int, int]]]
"""By system and task: preparing, all answers."""


@torch.inference_mode()
def task_flops(model: TagiModel, task: TaskLengths) -> tuple[int, int]:
    """Preparing a task, and answering all its examples token by token with a cache (Table 2).

    The model lies on the device `meta`. Matrix products only; attention is not fused, for torch counts that as nothing.
    Each token attends to one token more than the one before, so that two of them tell what all cost.
    """
    reads = reading(model.method, task)
    told = instructions(model, task).to("meta")
    prompts = torch.empty((task.examples * reads.prompts, reads.prompt), dtype=torch.long, device="meta")
    once, inputs, second, third = (FlopCounterMode(display=False) for _ in range(4))
    with sdpa_kernel(SDPBackend.MATH):
        with once:
            ready = model.prepare(model.adapt(told, torch.ones_like(told)))
        answers = steps(model, ready, prompts)
        for counter in (inputs, second, third):
            with counter:
                next(answers)
    n, step = task.target - 1, second.get_total_flops()  # reading gives the first token
    growth = third.get_total_flops() - step
    return once.get_total_flops(), inputs.get_total_flops() + n * step + n * (n - 1) // 2 * growth


def compared(spent: Spent) -> Rows:
    """Means over the tasks in GFLOPs; ratios to metatraining task by task, and of the sums; sums over the floor's."""
    totals = {name: [sum(one) for one in each] for name, each in spent.items()}
    return [
        {
            "": name,
            "once": fmean(once for once, _ in spent[name]) / 1e9,
            "answers": fmean(answers for _, answers in spent[name]) / 1e9,
            "mean ratio": fmean(own / other for own, other in zip(each, totals[REFERENCE], strict=True)),
            "sum ratio": sum(each) / sum(totals[REFERENCE]),
            "to the floor": sum(each) / sum(totals[FLOOR]),
        }
        for name, each in totals.items()
    ]


def main(asked: Namespace) -> None:
    """Compare the systems asked for, the two references among them."""
    setup, tasks = Setup(shape_of(asked.shape), hidden=asked.hidden, width=asked.width or None), sni_tasks(asked.shots)
    if isinstance(setup.shape, DecoderShape):
        raise ConfigError(f"--shape: {asked.shape} is decoder-only, and counted here are encoder-decoders")
    spent: dict[str, list[tuple[int, int]]] = {}
    for name in dict.fromkeys((REFERENCE, FLOOR, *asked.system)):
        model = setup.models(name)[0].to("meta")
        spent[name] = [task_flops(model, task) for task in track(tasks, name, transient=True)]
    show(asked, [], {f"{asked.shape}, {asked.shots} demonstrations, GFLOPs": compared(spent)})


OPTIONS = parser(__doc__, shape="t5-base", shots=0, hidden=128, width=0, system=SYSTEMS)
if __name__ == "__main__":
    run(main, OPTIONS)
