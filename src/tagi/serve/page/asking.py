"""One run of the page: what was asked, and its answers in three columns as they grow."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError, TagiError
from tagi.infer import asked
from tagi.infer.choices import likeliest
from tagi.infer.search import GenerationConfig
from tagi.serve.service import Service
from tagi.serve.worker import InPrompt, Piece, Told

Way = Literal["adapter", "prompt", "mismatched"]
WAYS: tuple[Way, ...] = ("adapter", "prompt", "mismatched")
LONGEST = 48
"""Tokens of an answer; untrained, the language model seldom comes to an end."""
GENERATION = GenerationConfig(max_new_tokens=LONGEST)
EVERY = 0.15
"""Seconds between two pictures of growing answers."""
OTHERS = ("Say which language the text is written in.", "List the colours that the text mentions.")
"""Whose adapter is the mismatched one where no other task is registered."""


@dataclass(slots=True)
class Cell:
    """One answer."""

    text: str = ""
    done: bool = False
    error: str | None = None
    tokens: tuple[int, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    """Of each choice, where answers are chosen."""


Cells = list[dict[Way, Cell]]
"""Of every input."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one press of the button asks."""

    told: Told
    instruction: Instruction
    choices: tuple[str, ...]
    texts: list[str]
    mismatched: Told
    mismatched_definition: str

    def by(self, way: Way) -> Told:
        """What inputs are solved by in a column."""
        return {"adapter": self.told, "prompt": InPrompt(self.instruction), "mismatched": self.mismatched}[way]


def written(definition: str, examples: Sequence[str], choices: str) -> tuple[Instruction, tuple[str, ...]]:
    """A task that a person wrote: examples as input, output, input, output; choices one a line, not a single one."""
    pairs: list[Demonstration] = []
    for number, (source, target) in enumerate(zip(examples[::2], examples[1::2], strict=True), 1):
        if bool(source.strip()) != bool(target.strip()):
            raise InputError(f"example {number}: fill in both its input and its output, or neither")
        if source.strip():
            pairs.append(Demonstration(source, target))
    chosen = tuple(dict.fromkeys(line.strip() for line in choices.splitlines() if line.strip()))
    if len(chosen) == 1:
        raise InputError("choices: give at least two, one a line, or none")
    return asked.instruction(Instruction(definition, tuple(pairs))), chosen


def ask(service: Service, name: str, own: tuple[Instruction, tuple[str, ...]] | None, texts: Sequence[str]) -> Asked:
    """Inputs of a registered task, or of one's own where `own` is given."""
    if not texts:
        raise InputError("inputs: there are none; write one a line, or drop a file")
    if own is None:
        task = service.tasks.get(name)
        told, instruction, choices = task.key, service.store.instruction(task.key), task.choices
    else:
        told, (instruction, choices) = own[0], own
    other = next((one for one in service.tasks.all() if service.store.instruction(one.key) != instruction), None)
    if other is not None:
        mismatched, definition = other.key, service.store.instruction(other.key).definition
    else:
        definition = next(one for one in OTHERS if one != instruction.definition)
        mismatched = Instruction(definition)
    return Asked(told, instruction, choices, service.inputs(texts), mismatched, definition)


async def answers(service: Service, one: Asked) -> AsyncIterator[Cells]:
    """The same cells again and again as they fill; nothing is left in the batch when this is closed."""
    cells: Cells = [{way: Cell() for way in WAYS} for _ in one.texts]
    work = _choosing(service, one, cells) if one.choices else _writing(service, one, cells)
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        waiting = set(tasks)
        while waiting:
            yield cells
            _, waiting = await asyncio.wait(waiting, timeout=EVERY)
        for task in tasks:
            task.result()
        yield cells
    finally:
        for task in tasks:
            task.cancel()


def _writing(service: Service, one: Asked, cells: Cells) -> list[Coroutine[Any, Any, None]]:
    """Every answer by itself, so that what goes wrong with one is said of that one."""

    async def fill(way: Way, text: str, cell: Cell) -> None:
        try:
            async for part in service.pieces(None, one.by(way), text, GENERATION):
                if isinstance(part, Piece):
                    cell.text += part.text
                elif (error := part.answer.error) is None:
                    cell.text, cell.tokens = part.answer.text, part.tokens
                else:
                    cell.error = str(error) if isinstance(error, TagiError) else "the service failed; its log says why"
        except TagiError as error:
            cell.error = str(error)
        cell.done = True

    return [fill(way, text, own[way]) for text, own in zip(one.texts, cells, strict=True) for way in WAYS]


def _choosing(service: Service, one: Asked, cells: Cells) -> list[Coroutine[Any, Any, None]]:
    """One column after another."""

    async def fill(way: Way) -> None:
        every = await service.scores(None, one.by(way), one.texts, one.choices)
        for own, scores in zip(cells, every, strict=True):
            shares = torch.tensor(scores).softmax(0).tolist()
            best = likeliest(one.choices, scores)
            tokens = tuple(service.tagi.collator.target(best))
            own[way] = Cell(best, True, None, tokens, dict(zip(one.choices, shares, strict=True)))

    return [fill(way) for way in WAYS]
