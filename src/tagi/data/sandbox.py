"""Jinja for other people's templates: sandboxed, a closed list of filters, and limits on time, loops and sizes."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

_BUDGET = "_budget"
_FILTERS = (
    *("abs", "capitalize", "count", "first", "float", "int", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "round", "select", "selectattr", "sort", "string", "sum", "title", "trim"),
    *("unique", "upper"),
)
"""Jinja's own filters that give no more than they are given."""
_GROWING = {"center", "expandtabs", "ljust", "rjust", "translate", "zfill"}
"""Methods of a string that can make it as long as one likes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may use."""

    steps: int = 100_000
    """Turns of all loops together."""
    size: int = 1_000_000
    """Characters, or items, of anything that is computed."""
    seconds: float = 2.0


LIMITED = Limits()


class OverLimit(SecurityError):
    """A template ran or grew past its limits."""


class Budget:
    """What is left of one rendering's limits, and its random choices."""

    def __init__(self, limits: Limits, seed: str) -> None:
        self.limits, self.random = limits, Random(seed)
        self.steps, self.deadline = 0, time.monotonic() + limits.seconds

    def step(self) -> None:
        """One more turn of a loop, or one more call."""
        self.steps += 1
        if self.steps > self.limits.steps:
            raise OverLimit(f"its loops take more than {self.limits.steps:,} turns")
        if time.monotonic() > self.deadline:
            raise OverLimit(f"it runs for more than {self.limits.seconds:g} seconds")

    def bound(self, size: int) -> None:
        """Refuse something of that many characters or items."""
        if size > self.limits.size:
            raise OverLimit(f"it computes a value of more than {self.limits.size:,} characters")


class Mask(Undefined):
    """A field of which nothing but its name is known: every question is answered yes, every part is the field."""

    unsafe_callable = alters_data = False

    def _same(self, *_: Any, **__: Any) -> Any:
        return self

    def _yes(self, other: Any) -> bool:
        del other
        return True

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"<{self._undefined_name}>"

    def __iter__(self) -> Iterator[Any]:
        yield self

    def __len__(self) -> int:
        return 1

    def __int__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return hash(str(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _yes
    __getitem__ = __call__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = _same
    __html__ = __str__


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with every loop counted and everything that can grow checked before it does."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        for macro in source.find_all((nodes.Macro, nodes.CallBlock)):
            raise SecurityError(f"line {macro.lineno}: macros are not allowed")
        return super()._generate(source, *arguments, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GROWING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(
            getattr(value, "__self__", None), str
        ):
            raise SecurityError("formatting by format is not allowed")

    def call(self, context: Context, obj: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        budget: Budget = context[_BUDGET]
        budget.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(context, owner, *arguments, **options)
        if isinstance(owner, str) and name == "join":
            return _join(context, arguments[0], owner)
        return super().call(context, obj, *arguments, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget: Budget = context[_BUDGET]
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting by % is not allowed")
        if operator == "**":
            budget.bound(abs(int(right)) * max(abs(int(left)).bit_length(), 1))
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | Sequence) and isinstance(other, int):
                    budget.bound(len(one) * other)
        if operator == "+" and isinstance(left, str | Sequence) and isinstance(right, str | Sequence):
            budget.bound(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> list[Any]:
    """What a loop runs over, counted item by item."""
    budget: Budget = context[_BUDGET]
    counted: list[Any] = []
    for value in values:
        budget.step()
        counted.append(value)
    return counted


@pass_context
def _join(context: Context, values: Iterable[Any], separator: str = "") -> str:
    budget: Budget = context[_BUDGET]
    texts, size = [], 0
    for value in values:
        texts.append(str(value))
        size += len(texts[-1]) + len(separator)
        budget.bound(size)
    return separator.join(texts)


@pass_context
def _replace(context: Context, text: Any, old: str, new: str, count: int = -1) -> str:
    budget: Budget = context[_BUDGET]
    whole, old, new = str(text), str(old), str(new)
    budget.bound(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


@pass_context
def _choice(context: Context, values: Sequence[Any]) -> Any:
    """One of the values, drawn from the rendering's own seed (PromptSource's `choice`)."""
    budget: Budget = context[_BUDGET]
    drawn = list(values)
    if not drawn and context.environment.undefined is Mask:
        return Mask(name="choice")
    return budget.random.choice(drawn)


def _most_frequent(values: Iterable[Any]) -> list[Any]:
    """The values that occur most often (PromptSource's `most_frequent`)."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]]


def _zip(*each: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*each, strict=False))


@cache
def environment(*, masks: bool) -> ImmutableSandboxedEnvironment:
    """Jinja as templates see it; with `masks`, every field is unknown and stands for its name."""
    made = _Environment(undefined=Mask if masks else Undefined, auto_reload=False)
    own = {"_counted": _counted, "join": _join, "replace": _replace, "choice": _choice, "most_frequent": _most_frequent}
    made.filters = {name: FILTERS[name] for name in _FILTERS} | own
    made.globals = {"range": made.globals["range"], "zip": _zip, "namespace": made.globals["namespace"]}
    return made


def generate(template: Template, values: Mapping[str, Any], *, seed: str, limits: Limits) -> str:
    """Render within limits.

    Raises:
        OverLimit: the template runs too long or computes something too large.
        Exception: whatever else its program raises.
    """
    budget = Budget(limits, seed)
    parts: list[str] = []
    size = 0
    for part in template.generate({**values, _BUDGET: budget}):
        size += len(part)
        budget.bound(size)
        parts.append(part)
    return "".join(parts)
