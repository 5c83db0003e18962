"""The values that every data source produces and every consumer reads."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example that belongs to an instruction."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the hypernetwork reads: a definition and, optionally, positive demonstrations in order."""

    definition: str
    positives: tuple[Demonstration, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One instance of a task; `targets` holds every accepted answer, the first is trained on."""

    id: str
    input: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    """The answers that rank classification chooses from; the right one is `targets[0]`. Empty where there are none."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task: one instruction and its instances.

    `examples` may be a list or a sequence that reads or generates its items on demand;
    listing tasks must therefore never touch it.
    """

    name: str
    instruction: Instruction
    categories: tuple[str, ...]
    examples: Sequence[Example]
