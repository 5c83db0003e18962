"""Seconds to answer, system by system, on random weights of a given shape: alternating runs in one process."""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from tagi.bench.timing import Comparison, Progress, alternate
from tagi.config import FusionConfig, HypernetworkConfig, T5Shape
from tagi.infer.engine import prepare
from tagi.methods import Method, get
from tagi.model import t5, tagi
from tagi.model.adapter import TaskAdapter
from tagi.model.costs import Reading, TaskLengths, as_deep, reading
from tagi.model.language_model import build
from tagi.model.rows import Rows
from tagi.model.t5 import T5
from tagi.model.t5_hf import save_t5
from tagi.model.tagi import Prepared, TagiModel

SEED = 0


def answering(
    shape: T5Shape,
    systems: Iterable[Method],
    generator: HypernetworkConfig,
    fused: FusionConfig,
    task: TaskLengths,
    batch: int,
    rounds: int,
    progress: Progress | None = None,
    *,
    transformers: bool = False,
) -> Comparison:
    """Answering `batch` examples with the task prepared: encoder, then every target token with a cache.

    Args:
        transformers: begin with the instruction in the prompt of `transformers`' own T5, by its `generate`.
    """
    cases: dict[str, Callable[[], object]] = {}
    models = models_around(shape, systems, generator, fused)
    if transformers:
        cases["transformers, prompt"] = _generate(shape, task, batch)
    for model in models:
        with torch.inference_mode():
            prepared = prepare(model, _adapter(model, task), task.examples)
        cases[model.method.name] = answer(model, prepared, reading(model.method, task), batch, task.target)
    return alternate(f"answering {batch} examples", cases, rounds, progress)


def adapting(
    shape: T5Shape,
    systems: Iterable[Method],
    generator: HypernetworkConfig,
    fused: FusionConfig,
    task: TaskLengths,
    rounds: int,
    progress: Progress | None = None,
) -> Comparison:
    """Preparing one task, against one encoder pass over its instruction and demonstrations, which stands first."""
    models = [model for model in models_around(shape, systems, generator, fused) if model.method.reads_instruction_once]
    told = torch.full((1, task.instruction + task.shots * task.demonstration), 2)

    @torch.inference_mode()
    def encode() -> Tensor:
        return models[0].encode_instruction(told, torch.ones_like(told))

    cases: dict[str, Callable[[], object]] = {"encoder pass": encode}
    cases |= {model.method.name: partial(_prepared, model, task) for model in models}
    return alternate("preparing a task", cases, rounds, progress)


def models_around(
    shape: T5Shape, systems: Iterable[Method], generator: HypernetworkConfig, fused: FusionConfig
) -> list[TagiModel]:
    """Every system around one and the same backbone; a decoder-only one of the same widths and as many blocks."""
    seed, backbone = torch.Generator().manual_seed(SEED), random_backbone(shape)
    bases = [(build(as_deep(shape), SEED) if method.decoder_only else backbone, method) for method in systems]
    models = [TagiModel(base, method, generator, fused).eval() for base, method in bases]
    for model in models:
        tagi.initialise(model, seed)
    return models


def _generate(shape: T5Shape, task: TaskLengths, batch: int) -> Callable[[], object]:
    """`transformers` on the prompt that metatraining reads, with the same backbone as every other system's."""
    reads = reading(get("metatrain"), task)
    with tempfile.TemporaryDirectory() as folder:
        save_t5(random_backbone(shape), Path(folder))
        theirs: Any = T5ForConditionalGeneration.from_pretrained(folder)
    theirs.eval()
    prompts = torch.full((batch, reads.prompt), 2)

    @torch.inference_mode()
    def case() -> object:
        mask = torch.ones_like(prompts)
        steps = {"max_new_tokens": task.target, "min_new_tokens": task.target}
        return theirs.generate(input_ids=prompts, attention_mask=mask, do_sample=False, **steps)

    return case


def random_backbone(shape: T5Shape) -> T5:
    """The same random weights for everyone."""
    backbone = T5(shape)
    t5.initialise(backbone, torch.Generator().manual_seed(SEED))
    return backbone


@torch.inference_mode()
def _adapter(model: TagiModel, task: TaskLengths) -> TaskAdapter:
    reads = reading(model.method, task)
    told = torch.full((1, reads.once), 2)
    if model.method.apart:
        told = told.unflatten(1, (reads.pieces, -1))
    return model.adapt(told, torch.ones_like(told))


@torch.inference_mode()
def _prepared(model: TagiModel, task: TaskLengths) -> Prepared:
    return model.prepare(_adapter(model, task))


def answer(model: TagiModel, prepared: Prepared, reads: Reading, batch: int, steps: int) -> Callable[[], None]:
    """Solving `batch` examples, shared evenly by the prepared tasks."""
    prompts = torch.full((batch * reads.prompts, reads.prompt), 2)
    rows, modules = Rows(prepared.adapter.tasks, len(prompts)), prepared.adapter.modules

    @torch.inference_mode()
    def case() -> None:
        context = model.encode_input(prompts, torch.ones_like(prompts), prepared, rows)
        past, token = None, prompts[:, :1]
        for _ in range(steps):  # the same number for every system, whatever its random weights would say
            logits, past = model.backbone.decode(token, context, modules=modules, rows=rows, past=past)
            token = logits.argmax(-1)

    return case
