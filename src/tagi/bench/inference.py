"""Seconds of one task, system by system, on random weights of a given shape: alternating runs in one process."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tagi.bench.models import Setup
from tagi.bench.timing import Case, Comparison, Group, Progress, Timing, alternate_all
from tagi.infer.answers import at_hand
from tagi.infer.compiled import Compiled
from tagi.infer.decode import Request, decode
from tagi.infer.engine import prepare
from tagi.infer.search import Limits
from tagi.methods import Method, get
from tagi.model.costs import Reading, TaskLengths, reading
from tagi.model.tagi import Prepared, TagiModel

ENCODER, TRANSFORMERS = "encoder pass", "transformers, prompt"


def one_task(
    setup: Setup,
    systems: Iterable[Method],
    task: TaskLengths,
    batches: Sequence[int],
    rounds: int,
    progress: Progress | None = None,
    *,
    transformers: bool = False,
    compiled: bool = False,
) -> list[Comparison]:
    """All in one alternating run: answering a batch of each size, preparing the task, and the two added up to a task.

    Where steps are compiled, answering alone: nothing else changes by it.

    Args:
        transformers: begin with the instruction in the prompt of `transformers`' own T5, by its `generate`.
        compiled: time every system once more with the decoder's steps compiled, which is done before the first round.

    Raises:
        ConfigError: a system's steps cannot be compiled.
    """
    models = setup.models(systems)
    ready = [(model, prepared(model, task)) for model in models]
    groups = [answering(ready, task, batch, compiled=compiled) for batch in batches]
    if transformers:
        theirs = setup.transformers()
        groups = [_after(_generate(theirs, task, batch), group) for batch, group in zip(batches, groups, strict=True)]
    if compiled or not any(model.method.reads_instruction_once for model in models):
        return alternate_all(groups, rounds, progress)
    *answered, once = alternate_all([*groups, preparing(models, task)], rounds, progress)
    return [*answered, once, *(whole_task(one, once, task.examples) for one in answered)]


def answering(
    ready: Sequence[tuple[TagiModel, Prepared]], task: TaskLengths, batch: int, *, compiled: bool = False
) -> Group:
    """`batch` examples with the task prepared: encoder, then every target token with a cache."""
    cases: dict[str, Case] = {}
    for model, worn in ready:
        for name, steps in ways(model.method.name, model, compiled=compiled).items():
            cases[name] = answer(model, worn, reading(model.method, task), batch, task.target, steps)
    return Group(f"answering, {batch} at a time", cases, answers=batch)


def ways(name: str, model: TagiModel, *, compiled: bool) -> dict[str, Compiled | None]:
    """A case's name, without and perhaps with the model's steps compiled.

    Raises:
        ConfigError: they cannot be compiled.
    """
    plain: dict[str, Compiled | None] = {name: None}
    return plain | {f"{name}, compiled": Compiled(model.backbone)} if compiled else plain


def _after(first: Case, group: Group) -> Group:
    return replace(group, cases={TRANSFORMERS: first} | dict(group.cases))


def whole_task(answered: Comparison, once: Comparison, examples: int) -> Comparison:
    """Preparing once, where a system does, and then so many examples, from the same rounds of the same run."""
    assert answered.answers is not None
    batches, seconds = examples / answered.answers, {one.name: one.seconds for one in once.timings}

    def added(one: Timing) -> Timing:
        before = seconds.get(one.name, (0.0,) * len(one.seconds))
        return Timing(one.name, tuple(first + batches * each for first, each in zip(before, one.seconds, strict=True)))

    timings = tuple(added(one) for one in answered.timings)
    return Comparison(f"a task of {examples} examples, {answered.answers} at a time (sum)", timings, examples)


def preparing(models: Sequence[TagiModel], task: TaskLengths) -> Group:
    """Preparing one task, against one encoder pass over its instruction and demonstrations, which stands first."""
    readers = [model for model in models if model.method.reads_instruction_once]
    told = torch.full((1, task.instruction + task.shots * task.demonstration), 2)

    @torch.inference_mode()
    def encode() -> Tensor:
        return readers[0].encode_instruction(told, torch.ones_like(told))

    cases: dict[str, Case] = {ENCODER: encode}
    cases |= {model.method.name: partial(prepared, model, task) for model in readers}
    return Group(f"preparing a task for {task.examples} examples", cases)


def _generate(theirs: Any, task: TaskLengths, batch: int) -> Case:
    """`transformers` on the prompt that metatraining reads, with the same backbone as every other system's."""
    prompts = torch.full((batch, reading(get("metatrain"), task).prompt), 2)
    steps = {"max_new_tokens": task.target, "min_new_tokens": task.target}

    @torch.inference_mode()
    def case() -> object:
        return theirs.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=False, **steps)

    return case


@torch.inference_mode()
def prepared(model: TagiModel, task: TaskLengths) -> Prepared:
    """Everything that is done once for the task's examples, as the engine does it."""
    reads = reading(model.method, task)
    told = torch.full((1, reads.once), 2)
    if model.method.apart:
        told = told.unflatten(1, (reads.pieces, -1))
    return prepare(model, model.adapt(told, torch.ones_like(told)), task.examples)


def answer(
    model: TagiModel, worn: Prepared, reads: Reading, batch: int, steps: int, compiled: Compiled | None = None
) -> Callable[[], None]:
    """Solving `batch` examples, shared evenly by the prepared tasks, in the engine's loop.

    Every answer has `steps` tokens for every system, whatever its random weights would say.
    """
    prompts = [[2] * reads.prompt] * reads.prompts
    limits = Limits(model.backbone.shape.eos_token_id, steps, steps)
    each = batch // worn.adapter.tasks
    requests = [Request(number, prompts, worn, number // each, "", limits) for number in range(batch)]

    def case() -> None:
        for _ in decode(model, at_hand(requests), batch, compiled):
            pass

    return case
