"""The values that every data source produces and every consumer reads."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Self, TypeVar, overload

from tagi.data.languages import UNSTATED, Languages
from tagi.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked example that belongs to an instruction."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the hypernetwork reads: a definition and, optionally, positive demonstrations in order."""

    definition: str
    demonstrations: tuple[Demonstration, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One instance of a task; `targets` holds every accepted answer; training draws one on every visit."""

    id: str
    input: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    """The answers that rank classification chooses from; the right one is `targets[0]`. Empty where there are none."""


@dataclass(frozen=True, slots=True)
class Generated(Sequence[Example]):
    """So many examples, each of them made when it is asked for."""

    size: int
    make: Callable[[int], Example]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        chosen = range(self.size)[index]
        return self.make(chosen) if isinstance(chosen, int) else [self.make(i) for i in chosen]


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
    languages: Languages = field(default=UNSTATED, kw_only=True)

    def first(self, count: int | None) -> Self:
        """The task with its first examples only."""
        return replace(self, examples=self.examples[:count])


def named(things: Iterable[T], name: Callable[[T], str], wanted: Sequence[str]) -> list[T]:
    """Those whose names are wanted, in that order and each once; all where none is wanted.

    One that is not there is a ConfigError, which names the nearest.
    """
    every = list(things)
    by_name = {name(thing): thing for thing in every}
    if unknown := [one for one in wanted if one not in by_name]:
        near = difflib.get_close_matches(unknown[0], by_name, n=1)
        raise ConfigError(f"there is no task {unknown[0]!r} here" + (f", did you mean {near[0]}?" if near else ""))
    return [by_name[one] for one in dict.fromkeys(wanted)] or every


def taken(things: Sequence[T], limit: int | None, seed: str | None) -> Sequence[T]:
    """The first `limit` of some things, or with a seed as many of them at random; None takes all."""
    count = len(things) if limit is None else min(limit, len(things))
    return things[:count] if seed is None else Random(seed).sample(things, count)
