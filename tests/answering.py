"""Requests to the decoding loop, and what it answers, that several test files share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import torch

from builders import VOCABULARY, seeded, small_decoder, small_t5, small_tagi, trained
from tagi.backbones.base import Prepared
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.t5.model import T5
from tagi.data.collate import pad
from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GREEDY, GenerationConfig, Limits
from tagi.infer.tasks import Request
from tagi.model.tagi import TagiModel, neutral

END, MOST = 20, 14
FAMILIES = ("t5", "decoder")


def lively(model: T5) -> T5:
    """A random decoder that does not only repeat its last token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.") and name.endswith((".o.weight", ".v.weight")):
                parameter.mul_(4.0)
    return model


def lively_decoder(seed: int, **overrides: Any) -> Decoder:
    """The same of the other family."""
    model, generator = small_decoder(seed, **overrides), seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
    return model


def backbone(family: str, seed: int = 5, **overrides: Any) -> LanguageModel:
    """A random language model of either family that tells inputs apart."""
    if family == "decoder":
        return lively_decoder(seed, **overrides)
    return lively(small_t5(seed, **overrides))


def answering(method: str, family: str = "t5", seed: int = 5) -> TagiModel:
    """A model of a method that answers different inputs and tasks differently."""
    return trained(small_tagi(method, seed=seed, backbone=backbone(family, seed)), seed)


def prompts(count: int, seed: int) -> list[list[int]]:
    """Random token ids of inputs."""
    rng = Random(seed)
    return [[rng.randrange(8, VOCABULARY) for _ in range(rng.randint(1, 20))] for _ in range(count)]


def bare(model: TagiModel) -> Prepared:
    """A task that changes nothing."""
    return model.prepare(neutral(model.backbone, 1))


def told(model: TagiModel, tasks: int, seed: int) -> Prepared:
    """So many tasks prepared together, their instructions of different lengths."""
    rng = Random(seed)
    instructions = [[rng.randrange(8, VOCABULARY) for _ in range(rng.randint(2, 9))] for _ in range(tasks)]
    return model.prepare(model.adapt(*pad(instructions)))


def requests(
    prepared: Prepared,
    texts: Sequence[Sequence[int]],
    generation: GenerationConfig = GREEDY,
    *,
    ends: tuple[int, ...] = (END,),
    max_new_tokens: int = MOST,
) -> list[Request]:
    """Inputs of one task, numbered from 0."""
    limits = Limits(ends, max_new_tokens, generation.min_new_tokens)
    return [Request(i, [text], prepared, 0, f"{i}", limits, generation) for i, text in enumerate(texts)]


def collected(steps: Iterable[Tokens], count: int) -> list[list[int]]:
    """The tokens of every request."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    for step in steps:
        tokens[step.number] += step.new
    return tokens


def together(model: TagiModel, each: Sequence[Request], capacity: int = 64) -> list[list[int]]:
    """The answers to requests that are all there from the beginning."""
    return collected(Scheduler(model.backbone, capacity).run(each), len(each))


def alone(model: TagiModel, request: Request) -> list[int]:
    """The answer to one request of which nobody else knows."""
    return together(model, [replace(request, number=0)], 1)[0]


def at_random(
    model: TagiModel, each: Sequence[Request], capacity: int, rng: Random, *, eager: bool = True
) -> Iterator[Tokens]:
    """What is settled of requests that come a few at a time while others run."""
    scheduler, left = Scheduler(model.backbone, capacity, eager=eager), iter(each)
    while True:
        for request in islice(left, rng.randint(int(scheduler.idle), max(capacity // 4, 1))):
            scheduler.submit(request)
        if scheduler.idle:
            return
        yield from scheduler.step()
