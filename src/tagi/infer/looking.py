"""What a person may look at of one answered input: the generated LoRA, and where the answer attended to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from tagi.backbones.rows import Rows
from tagi.backbones.sites import Site
from tagi.data.types import Instruction
from tagi.infer.engine import Tagi
from tagi.losses import product_distance, product_energy
from tagi.model.adapter import TaskAdapter


@dataclass(frozen=True, slots=True)
class Norms:
    """‖ΔW‖ (Frobenius) of every site of one task's LoRA."""

    by_site: dict[Site, float]
    beyond_shared: bool
    """Whether it is of ΔW - ΔW₀, what the task adds to the LoRA that all tasks share."""


@torch.inference_mode()
def norms(tagi: Tagi, adapter: TaskAdapter) -> Norms:
    """Of one task's LoRA, from its r × r Gram matrices; in double precision, for the two may differ by very little."""
    hypernetwork = tagi.model.hypernetwork
    shared = {} if hypernetwork is None else hypernetwork.shared
    found: dict[Site, float] = {}
    for site, own in tagi.model.lora(adapter).items():
        if site.place in ("prefix", "bottleneck"):
            continue
        a, b = own.a.double(), own.b.double()
        if site in shared:
            energy = product_distance(a, b, shared[site].a.double(), shared[site].b.double())
        else:
            energy = product_energy(a, b)
        found[site] = abs(own.scale) * float(energy.clamp(min=0).sqrt())
    return Norms(found, bool(shared))


@torch.inference_mode()
def attention(
    tagi: Tagi, adapter: TaskAdapter, instruction: Instruction, text: str, answer: Sequence[int]
) -> list[tuple[str, float]] | None:
    """The instruction's tokens as texts, and how much an answer attended to each: the mean over its tokens, blocks and
    heads. None where inputs do not attend to instructions, or the model is an encoder-decoder.

    What a chat template puts before the instruction is left out.
    """
    if not answer:
        return None
    (prompt,) = tagi.prompts(None, text, follows=True)
    ids, targets = (torch.tensor([one], device=tagi.device) for one in (prompt, list(answer)))
    prepared, rows = tagi.model.prepare(adapter), Rows(1, 1)
    found = tagi.model.backbone.attention(ids, torch.ones_like(ids).bool(), targets, prepared=prepared, rows=rows)
    return None if found is None else _written(tagi, instruction, found[0].float().mean(0).tolist())


def _written(tagi: Tagi, instruction: Instruction, weights: Sequence[float]) -> list[tuple[str, float]]:
    """Every token with its weight, from the first one of the definition on."""
    read = tagi.collator.instruction(instruction)[: len(weights)]
    texts = [str(tagi.tokenizer.decode(read[:end])) for end in range(len(read) + 1)]
    start = max(texts[-1].find(instruction.definition.strip()), 0)
    pieces = [(len(after), after[len(before) :]) for before, after in pairwise(texts)]
    return [(text, one) for (end, text), one in zip(pieces, weights, strict=True) if end > start]
