"""What one rendering of a template may use: turns of loops, sizes of values, time."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may use."""

    steps: int = 100_000
    """Turns of all loops together."""
    size: int = 1_000_000
    """Characters, or items, of anything that is computed."""
    seconds: float = 2.0


LIMITS = Limits()


class OverLimit(SecurityError):
    """A template ran or grew past its limits."""


class Budget:
    """What is left of one rendering's limits, and its random choices."""

    def __init__(self, seed: str) -> None:
        self.limits, self.random = LIMITS, Random(seed)
        self.steps, self.deadline = 0, time.monotonic() + LIMITS.seconds

    def step(self) -> None:
        """One more turn of a loop, or one more call."""
        self.steps += 1
        if self.steps > self.limits.steps:
            raise OverLimit(f"its loops take more than {self.limits.steps:,} turns")
        self.check_time()

    def check_time(self) -> None:
        """Refuse to go on after the deadline."""
        if time.monotonic() > self.deadline:
            raise OverLimit(f"it runs for more than {self.limits.seconds:g} seconds")

    def bound(self, size: float) -> None:
        """Refuse something of that many characters or items."""
        if size > self.limits.size:
            raise OverLimit(f"it computes a value of more than {self.limits.size:,} characters")

    def measured(self, value: Any) -> Any:
        """The same value, refused if it is too large together with all that is in it.

        What stands in it several times counts several times, for so it would be printed.
        """
        self.check_time()
        size, rest = 0, [value]
        while rest:
            one = rest.pop()
            inside: Iterable[Any] = ()
            if isinstance(one, str | bytes):
                size += len(one)
            elif isinstance(one, Undefined):
                size += 1
            elif isinstance(one, int):
                size += one.bit_length() // 3 + 1
            elif isinstance(one, Namespace):
                raise SecurityError("a namespace is no value")
            elif isinstance(one, Mapping):
                size, inside = size + len(one), [*one.keys(), *one.values()]
            elif isinstance(one, Sequence | Set | ValuesView):
                size, inside = size + len(one), () if isinstance(one, range) else one
            self.bound(size)
            rest.extend(inside)
        return value


_BUDGET: ContextVar[Budget] = ContextVar("budget")


def budget() -> Budget:
    """That of the rendering that runs in this thread."""
    return _BUDGET.get()


@contextmanager
def within(seed: str) -> Iterator[None]:
    """A fresh budget for what is rendered in the block."""
    token = _BUDGET.set(Budget(seed))
    try:
        yield
    finally:
        _BUDGET.reset(token)
