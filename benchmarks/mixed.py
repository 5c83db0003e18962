"""Time a batch with a different task in every row, against one task, one task after another, and `peft`."""

import copy
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import parser, run, show
from benchmarks.lengths import mean_task
from benchmarks.models import (
    DTYPES,
    TOKEN,
    Setup,
    adapter_names,
    answering,
    generating,
    instructions,
    prepared,
    shape_of,
)
from benchmarks.timing import Case, Comparison, alternate
from tagi.cli.common import note
from tagi.cost.task import TaskLengths, reading
from tagi.model.tagi import TagiModel

SAME, DIFFERENT, IN_TURN = "tagi, one task", "tagi, different tasks", "tagi, one task after another"
LORA, PEFT = "LoRA alone, different tasks", "peft adapter_names"
COMPARED = 64
"""Tasks that are answered one after another and by `peft`, at most: for 256 of t5-small a round takes minutes."""


def many_tasks(setup: Setup, task: TaskLengths, tasks: int, folder: Path) -> list[Comparison]:
    """One example of each of so many tasks: adapters at hand, then from tasks never seen, whose adapters we generate
    and `peft` loads from a folder."""
    full, lora = setup.models("tagi", "lora_only")
    warm: dict[str, Case] = {
        SAME: _answers(full, task, 1, tasks),
        DIFFERENT: _answers(full, task, tasks, tasks),
        LORA: _answers(lora, task, tasks, tasks),
    }
    cold: dict[str, Case] = {
        DIFFERENT: lambda: _answers(full, task, tasks, tasks)(),
        LORA: lambda: _answers(lora, task, tasks, tasks)(),
    }
    if tasks <= COMPARED:
        alone = [_answers(full, task, 1, 1) for _ in range(tasks)]
        warm[IN_TURN] = lambda: [one() for one in alone]
        base, theirs = setup.transformers(), setup.peft(tasks).eval()
        theirs.save_pretrained(folder)
        warm[PEFT] = _by_names(theirs, task, tasks)
        cold[PEFT] = lambda: _by_names(_load(base, folder, tasks), task, tasks)()
    warm_title, cold_title = f"tasks with adapters at hand: {tasks:,}", f"tasks never seen: {tasks:,}"
    return [Comparison(warm_title, warm, tasks), Comparison(cold_title, cold, tasks)]


def _answers(model: TagiModel, task: TaskLengths, tasks: int, examples: int) -> Case:
    """Examples of so many tasks, whose adapters are generated now."""
    ready = prepared(model, instructions(model, task, tasks), examples)
    return answering(model, ready, reading(model.method, task), examples, task.target)


def _load(base: Any, folder: Path, tasks: int) -> Any:
    """Every task's LoRA from its files, under a copy of the language model."""
    from peft import PeftModel

    first, *others = adapter_names(tasks)
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder / first, first, autocast_adapter_dtype=False)
    for name in others:
        model.load_adapter(str(folder / name), name, autocast_adapter_dtype=False)
    return model.eval()


def _by_names(model: Any, task: TaskLengths, tasks: int) -> Case:
    inputs = torch.full((tasks, task.input), TOKEN)
    return generating(model, inputs, task.target, adapter_names=adapter_names(tasks))


def main(asked: Namespace) -> None:
    """Compare numbers of tasks one after another, at the mean lengths of SNI's test tasks."""
    setup, timed = Setup(shape_of(asked.shape), dtype=DTYPES[asked.dtype], generator=asked.generator), []
    for tasks in asked.tasks:
        if tasks > COMPARED:
            note(f"{tasks} tasks: neither one after another nor by peft, which takes too long beyond {COMPARED}")
        with tempfile.TemporaryDirectory() as folder:
            compared = many_tasks(setup, mean_task(0), tasks, Path(folder))
            alternate(compared, asked.rounds)
            timed += compared
    show(asked, timed)


OPTIONS = parser(__doc__, shape="t5-small", tasks=(1, 8, 64, 256), dtype="fp32", generator="mlp", rounds=5)
if __name__ == "__main__":
    run(main, OPTIONS)
