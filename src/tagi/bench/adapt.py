"""Preparing tasks: its time and memory against plain encoder passes, the bytes of what is prepared, and how many
requests pay for it. Random weights and tokens, real lengths."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import floor
from typing import Any

import torch
from torch import Tensor

from tagi.backbones.cache import KeyValue
from tagi.bench.inference import ENCODER, answering, prepared, preparing
from tagi.bench.memory import Allocated, allocated
from tagi.bench.models import Setup
from tagi.bench.timing import Case, Comparison, Group, Progress, Series, alternate_all
from tagi.data.collate import pad
from tagi.errors import ConfigError
from tagi.methods import Method, get
from tagi.model.adapter import to_bytes
from tagi.model.costs import TaskLengths, reading
from tagi.model.tagi import Prepared, TagiModel

PROMPT = "metatrain"
Instructions = Sequence[tuple[Tensor, Tensor]]
"""Ids and masks (T, S), batch by batch."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What preparing so many tasks allocates."""

    tasks: int
    name: str
    bytes: Allocated


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one prepared task."""

    name: str
    adapter: int
    """Modules and instruction memory."""
    keys_values: int
    """Of the instruction memory, for fusion and decoder."""
    folded: int
    """Copies of the weights with the LoRA inside, which the engine makes for several inputs of one task."""
    disk: int
    """Of the adapter's file."""

    @property
    def prepared(self) -> int:
        """Adapter, keys and values."""
        return self.adapter + self.keys_values


@dataclass(frozen=True, slots=True)
class BreakEven:
    """From how many requests on preparing a task is cheaper than its instruction in every prompt; None: never."""

    name: str
    batch: int
    requests: int | None


@dataclass(frozen=True, slots=True)
class AdaptBench:
    """Everything that is measured about preparing tasks."""

    comparisons: list[Comparison]
    """Of numbers of tasks, then of answering batches."""
    memory: list[Memory]
    sizes: list[Sizes]
    break_even: list[BreakEven]

    def as_json(self) -> dict[str, Any]:
        """All but the comparisons as plain values."""
        return {
            "memory": [asdict(one) for one in self.memory],
            "sizes": [asdict(one) | {"prepared": one.prepared} for one in self.sizes],
            "break_even": [asdict(one) for one in self.break_even],
        }


def adapt_bench(
    setup: Setup,
    systems: Sequence[Method],
    tasks: Sequence[TaskLengths],
    task: TaskLengths,
    *,
    counts: Sequence[int],
    together: int,
    batches: Sequence[int],
    rounds: int,
    progress: Progress | None = None,
) -> AdaptBench:
    """Measure all of it, everything timed in one alternating run.

    Args:
        tasks: whose instruction lengths are used.
        task: one of mean lengths, whose sizes and break-even are given.
        counts: numbers of tasks to prepare.
        together: instructions in an encoder pass, those of similar length together.
        batches: numbers of requests that are answered together.

    Raises:
        ConfigError: a system that prepares nothing.
    """
    check(systems)
    prompt, *models = setup.models([get(PROMPT), *systems])
    lengths = [reading(get("tagi"), one).once for one in tasks]
    many = [_preparing(models, instructions(spread(lengths, count), together), count) for count in counts]
    ready = [(model, prepared(model, task)) for model in (prompt, *models)]
    requests = [answering(ready, task, batch) for batch in batches]
    found = alternate_all([*many, preparing(models, task), *requests], rounds, progress)
    once, answered = found[len(many)], found[len(many) + 1 :]
    return AdaptBench(
        found,
        [one for count, group in zip(counts, many, strict=True) for one in _memory(group, count)],
        [sizes(model.method.name, worn) for model, worn in ready[1:]],
        [one for comparison in answered for one in break_even(once, comparison)],
    )


def _memory(group: Group, count: int) -> list[Memory]:
    return [Memory(count, name, allocated(case)) for name, case in group.cases.items()]


def check(systems: Sequence[Method]) -> None:
    """
    Raises:
        ConfigError: a system that prepares nothing.
    """
    if without := next((method.name for method in systems if not method.adapts), None):
        raise ConfigError(f"{without}: this system prepares nothing that it could answer by instead of the instruction")


def spread(lengths: Sequence[int], count: int) -> list[int]:
    """So many of the given lengths, evenly over all of them, the shortest first; one is the median."""
    ordered = sorted(lengths)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def instructions(lengths: Sequence[int], together: int) -> Instructions:
    """Instructions of these lengths in batches of at most `together`, each padded to its longest."""
    return [pad([[2] * length for length in lengths[i : i + together]]) for i in range(0, len(lengths), together)]


def requests_to_pay(preparing: float, answer: float, prompted: float) -> int | None:
    """The first n with preparing + n · answer < n · prompted, in seconds; None where no n is enough."""
    return floor(preparing / (prompted - answer)) + 1 if answer < prompted else None


def break_even(once: Comparison, answered: Comparison) -> list[BreakEven]:
    """Of every system that was prepared `once` and then answered batches beside the prompt, from the medians."""
    batch = answered.answers
    assert batch is not None
    each = {one.name: one.median / batch for one in answered.timings}
    return [
        BreakEven(one.name, batch, requests_to_pay(one.median, each[one.name], each[PROMPT]))
        for one in once.timings
        if one.name in each
    ]


def sizes(name: str, worn: Prepared) -> Sizes:
    """Bytes of one task that was prepared as the engine does it for several inputs."""
    copies = [factors.whole for factors in worn.adapter.modules.values() if factors.whole is not None]
    return Sizes(
        name,
        adapter=worn.adapter.nbytes,
        keys_values=_bytes(_keys_values(worn)),
        folded=_bytes(copies),
        disk=len(to_bytes(worn.adapter)),
    )


def _keys_values(worn: Prepared) -> list[Tensor]:
    layers: list[KeyValue] = [*worn.fusion.layers.values()] if worn.fusion is not None else []
    layers += worn.decoder.layers if worn.decoder is not None else ()
    return [tensor for layer in layers for tensor in (layer.k, layer.v)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _preparing(models: Sequence[TagiModel], told: Instructions, count: int) -> Group:
    cases: dict[str, Case] = {ENCODER: _each(models[0].encode_instruction, told)}
    cases |= {model.method.name: _each(partial(_prepare, model), told) for model in models}
    return Group(f"preparing tasks: {count:,}", cases, series=Series("preparing tasks", count))


def _each(work: Callable[[Tensor, Tensor], object], told: Instructions) -> Case:
    """Every batch's result, all of them held until the last is there."""

    @torch.inference_mode()
    def case() -> list[object]:
        return [work(ids, mask) for ids, mask in told]

    return case


def _prepare(model: TagiModel, ids: Tensor, mask: Tensor) -> Prepared:
    return model.prepare(model.adapt(ids, mask))
