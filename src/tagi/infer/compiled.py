"""Decoding with steps compiled by `torch.compile`, for shapes that seldom change; CUDA graphs on a GPU.

A batch is laid out so that a handful of graphs serve every step: requests, tokens of the inputs and of the
instruction, and places of the answers are rounded up. Rows wear the one task that they share, or each request has a
copy of its own task. All but the last tokens and the rows' lengths lies at addresses that stay, as CUDA graphs want it.
The encoder and an answer's first step are not compiled: they read each request once, and their lengths vary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.cache import Attended, DecoderContext, DecoderMemory, FixedPast, History, KeyValue
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site
from tagi.backbones.t5.model import T5
from tagi.errors import ConfigError
from tagi.infer.steps import StepInput, Steps, begun, step

Backend = str | Callable[..., Any]
"""Of `torch.compile`, by name or as a function."""
TOKENS, PLACES = 64, 16
"""Lengths of what is read, and places of an answer, from which on they are rounded up to powers of two."""
GRAPHS = 512
"""Of one process, at most; more is an error, for it would mean that shapes are not rounded."""
WORN = frozenset({"decoder.self", "decoder.cross", "decoder.feed_forward"})
"""Kinds of sites that a step wears."""


class Compiled:
    """A T5 whose decoder's steps are compiled when they first come with new shapes.

    Raises:
        ConfigError: another family of language models, or nothing can be compiled here.
    """

    def __init__(self, backbone: LanguageModel, backend: Backend = "inductor") -> None:
        if not isinstance(backbone, T5):
            raise ConfigError("compile: only the decoder of a T5 can be compiled, not GPT-2's or OPT's")
        device = backbone.embedding.weight.device
        _check(backend, device)
        graphs = backend == "inductor" and device.type == "cuda"
        self.backbone = backbone
        self._step = torch.compile(
            partial(_logits, backbone),
            backend=backend,
            mode="reduce-overhead" if graphs else None,
            fullgraph=True,
            dynamic=False,
        )
        self._idle: list[_Places] = []

    @contextmanager
    def steps(self) -> Iterator[Steps]:
        """The steps of one running batch, with memory that nobody else writes to meanwhile."""
        try:
            places = self._idle.pop()
        except IndexError:
            places = _Places()
        try:
            yield _Steps(self, places)
        finally:
            self._idle.append(places)

    def logits(self, read: StepInput) -> Tensor:
        """Logits (R, 1, V) of one step, by the graph of its shapes."""
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            return self._step(read)


def _logits(backbone: T5, read: StepInput) -> Tensor:
    return step(backbone, read)[0]


def _check(backend: Backend, device: torch.device) -> None:
    """Compile something tiny.

    Raises:
        ConfigError: that fails.
    """
    try:
        torch.compile(_twice, backend=backend, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler or its absence raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"compile: this machine cannot compile for {device.type} ({reason.strip()})") from error


def _twice(x: Tensor) -> Tensor:
    return x * 2


class _Places:
    """Tensors by name that lie at the same address whatever their shape, as long as they do not grow."""

    def __init__(self) -> None:
        self._storage: dict[tuple[object, ...], Tensor] = {}

    def put(self, name: tuple[object, ...], x: Tensor, shape: tuple[int, ...], filler: float = 0.0) -> Tensor:
        """A copy of x in the first places of a tensor of that shape, the others filled."""
        held = self._storage.get(name)
        if held is None or held.numel() < prod(shape) or held.dtype != x.dtype:
            held = self._storage[name] = x.new_empty(prod(shape))
        placed = held[: prod(shape)].view(shape)
        torch._dynamo.mark_static_address(placed, guard=False)
        placed.fill_(filler)[tuple(map(slice, x.shape))].copy_(x)
        return placed


class _Steps:
    """Implements `Steps`."""

    def __init__(self, compiled: Compiled, places: _Places) -> None:
        self._compiled, self._places = compiled, places

    def size(self, requests: int) -> int:
        return rounded(requests, 1)

    def first(self, read: StepInput, tokens: int) -> tuple[Tensor, History]:
        logits, past = begun(self._compiled.backbone, read)
        return logits, FixedPast.of(past, rounded(past.length + tokens, PLACES))

    def next(self, read: StepInput) -> tuple[Tensor, History]:
        assert isinstance(read.past, FixedPast)
        return self._compiled.logits(read), read.past.after(read.past.layers)

    def placed(self, read: StepInput, each: int) -> StepInput:
        assert isinstance(read.past, FixedPast)
        size = self.size(read.rows.count // each)
        count = size * each
        if read.rows.tasks == 1:
            rows, context, owner = Rows(1, count), read.context, None
        else:
            rows, context = Rows(size, count), read.context.with_memory_inside(read.rows)
            owner = read.rows.pick(torch.arange(read.rows.tasks, device=read.last.device))[::each]
        return StepInput(
            F.pad(read.last, (0, 0, 0, count - len(read.last))),
            self._context(context, count),
            self._modules(read.modules, owner, size),
            rows,
            self._past(read.past, count),
        )

    def _context(self, context: DecoderContext, count: int) -> DecoderContext:
        layers, bias = self._attended("context", (context.layers, context.bias), count)
        memory = context.memory
        if memory is not None:
            memory = DecoderMemory(*self._attended("memory", (memory.layers, memory.bias), 1))
        return DecoderContext(layers, bias, memory)

    def _attended(self, name: str, attended: Attended, count: int) -> Attended:
        layers, bias = attended
        length = rounded(bias.shape[-1], TOKENS)
        lowest = torch.finfo(bias.dtype).min
        return (
            tuple(self._key_value((name, layer), own, count, length) for layer, own in enumerate(layers)),
            self._places.put((name, "bias"), bias, (count, 1, 1, length), lowest),
        )

    def _past(self, past: FixedPast, count: int) -> FixedPast:
        layers = (self._key_value(("past", i), own, count, past.capacity) for i, own in enumerate(past.layers))
        return FixedPast(tuple(layers), F.pad(past.length, (0, count - len(past.length))))

    def _key_value(self, name: tuple[object, ...], own: KeyValue, count: int, length: int) -> KeyValue:
        shape = (count, own.k.shape[1], length, own.k.shape[3])
        return KeyValue(self._places.put((*name, "k"), own.k, shape), self._places.put((*name, "v"), own.v, shape))

    def _modules(self, modules: Modules, owner: Tensor | None, size: int) -> Modules:
        worn = {site: f for site, f in modules.items() if site.kind in WORN}
        return {site: self._factors(site, f, owner, size) for site, f in worn.items()}

    def _factors(self, site: Site, factors: Factors, owner: Tensor | None, size: int) -> Factors:
        if factors.whole is not None:
            return replace(factors, whole=self._places.put((site, "whole"), factors.whole, tuple(factors.whole.shape)))
        a, b = (x if owner is None else x[owner] for x in (factors.a, factors.b))
        tasks = 1 if owner is None else size
        return replace(
            factors,
            a=self._places.put((site, "a"), a, (tasks, *a.shape[1:])),
            b=self._places.put((site, "b"), b, (tasks, *b.shape[1:])),
        )


def rounded(count: int, least: int) -> int:
    """0, or the next power of two that is not below `least`."""
    return 0 if count == 0 else max(least, 1 << (count - 1).bit_length())
