"""Time answering a task, system by system, and preparing it, at the mean lengths of SNI's test tasks."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from math import floor
from typing import Any

import torch

from benchmarks.command import Rows, parser, run, show
from benchmarks.lengths import mean_task
from benchmarks.models import (
    DTYPES,
    TOKEN,
    Setup,
    answering,
    generating,
    generating_after,
    instructions,
    prepared,
    shape_of,
)
from benchmarks.timing import Case, Comparison, alternate
from tagi import methods
from tagi.cost.task import TaskLengths, reading
from tagi.model.tagi import TagiModel

PROMPT, READING = "metatrain", "plain pass"
ALL = "all"
"""Systems that the language model can have."""


def answers(models: Sequence[TagiModel], task: TaskLengths, batch: int, theirs: Any = None) -> Comparison:
    """Answering `batch` examples of a prepared task.

    Args:
        theirs: a model of `transformers`, which reads the instruction in its prompt and comes first; a decoder-only one
            a second time with the instruction's keys and values at hand.
    """

    def cases() -> Iterator[tuple[str, Case]]:
        if theirs is not None:
            prompt = reading(methods.get(PROMPT), task).prompt
            yield "transformers, prompt", generating(theirs, torch.full((batch, prompt), TOKEN), task.target)
            if not theirs.config.is_encoder_decoder:
                told, inputs = (torch.full(size, TOKEN) for size in ((1, prompt - task.input), (batch, task.input)))
                yield "transformers, cached prefix", generating_after(theirs, told, inputs, task.target)
        for model in models:
            ready, reads = prepared(model, instructions(model, task), task.examples), reading(model.method, task)
            yield model.method.name, answering(model, ready, reads, batch, task.target)

    return Comparison(f"answering, {batch} at a time", dict(cases()), batch)


def preparing(models: Sequence[TagiModel], task: TaskLengths) -> Comparison:
    """Preparing a task by every model that can, against one pass of the language model over its instruction and
    demonstrations."""
    told = torch.full((1, task.instruction + task.shots * task.demonstration), TOKEN)
    read = torch.inference_mode()(lambda: models[0].backbone.read(told, torch.ones_like(told)))
    cases: dict[str, Case] = {READING: read}
    for model in models:
        if model.method.reads_instruction_once:
            cases[model.method.name] = partial(prepared, model, instructions(model, task), task.examples)
    return Comparison("preparing the task", cases)


def break_even(once: Comparison, answered: Comparison) -> Rows:
    """From how many requests on preparing a task is cheaper than its instruction in every prompt, from the medians."""
    batch, names = answered.count, [name for name in once.seconds if name in answered.seconds]
    assert batch is not None
    each = {name: answered.median(name) / batch for name in answered.seconds}
    pays = {name: requests_to_pay(once.median(name), each[name], each[PROMPT]) for name in names}
    return [{"": name, "at a time": batch, "requests": n if n is not None else "never"} for name, n in pays.items()]


def requests_to_pay(preparing: float, answer: float, prompted: float) -> int | None:
    """The first n with preparing + n · answer < n · prompted, in seconds; None where no n is enough."""
    return floor(preparing / (prompted - answer)) + 1 if answer < prompted else None


def main(asked: Namespace) -> None:
    """Compare what was asked for."""
    setup = Setup(shape_of(asked.shape), dtype=DTYPES[asked.dtype], generator=asked.generator)
    task = mean_task(asked.shots)
    models = setup.models(*(setup.systems() if ALL in asked.system else asked.system))
    theirs = setup.transformers() if asked.transformers else None
    answered = [answers(models, task, batch, theirs) for batch in asked.batch]
    once = preparing(models, task)
    timed = answered if len(once.cases) == 1 else [*answered, once]
    alternate(timed, asked.rounds)
    pays = [row for one in answered if PROMPT in one.seconds for row in break_even(once, one)]
    show(asked, timed, {"requests from which preparing pays against the prompt": pays})


OPTIONS = parser(
    __doc__,
    shape="t5-small",
    shots=0,
    batch=(1, 16),
    system=(ALL,),
    dtype="fp32",
    generator="mlp",
    transformers=False,
    rounds=5,
)
if __name__ == "__main__":
    run(main, OPTIONS)
