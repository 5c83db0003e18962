"""What the inputs of a run cost, measured: with the adapter, and with the instruction in the prompt."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

from tagi.backbones.base import Prepared
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GenerationConfig
from tagi.infer.tasks import Request
from tagi.model.adapter import TaskAdapter
from tagi.serve.page.asking import Asked, Way
from tagi.serve.service import Service

TIMED, TOKENS = 3, 8
"""Answers by each way that are timed, and tokens of every one of them: untrained answers are longer, not slower."""
FIXED = GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS)


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one run."""

    once_tokens: int
    once_milliseconds: float
    """To read the instruction and to write the adapter."""
    each: dict[Way, tuple[float, float]]
    """By the way: tokens that are read with every input, and the median of milliseconds."""
    inputs: int


async def measured(service: Service, asked: Asked, adapter: TaskAdapter) -> Costs:
    """The first inputs once more, alone and one after another, the two ways taking turns; between two of them the
    server's batch goes on."""
    tagi, asking = service.tagi, service.worker.asking
    attended = adapter.instruction.attended
    follows = attended is not None and bool(attended.mask.any())
    texts = asked.texts[:TIMED]
    seconds: dict[Way, list[float]] = {"adapter": [], "prompt": []}
    tokens: dict[Way, list[int]] = {"adapter": [], "prompt": []}

    def timed(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    def solve(prepared: Prepared, prompts: list[list[int]]) -> None:
        request = Request(0, prompts, prepared, 0, "", tagi.limits(FIXED), FIXED)
        for step in Scheduler(tagi.model.backbone).run([request]):
            if step.error is not None:
                raise step.error

    once = await service.on_model(None, lambda: timed(lambda: tagi.adapt_all([asked.instruction])))
    own = await service.on_model(None, lambda: tagi.model.prepare(adapter))
    bare = await service.on_model(None, lambda: tagi.model.prepare(tagi.neutral()))
    for text in islice(cycle(texts), TIMED):
        ways: dict[Way, tuple[Prepared, list[list[int]]]] = {
            "adapter": (own, tagi.prompts(None, text, follows=follows)),
            "prompt": (bare, asking.prompts(asked.instruction, text)),
        }
        for way, (prepared, prompts) in ways.items():
            tokens[way].append(sum(map(len, prompts)))
            taken = await service.on_model(None, lambda p=prepared, q=prompts: timed(lambda: solve(p, q)))
            seconds[way].append(taken)
    each: dict[Way, tuple[float, float]] = {
        way: (sum(tokens[way]) / TIMED, 1000 * median(own)) for way, own in seconds.items()
    }
    return Costs(int(adapter.instruction.mask.sum()), 1000 * once, each, len(texts))
