"""Jinja for other people's templates: sandboxed, closed lists of filters and methods, limits on time, loops and sizes.

Every value that a template computes is measured, with all that is in it, where it is made and where it is used: results
of operators, calls and filters, their arguments, what a loop runs over, what a name stands for, and what is printed. So
nothing grows by more than one operation past the limit, and each operation on values of such a size is short.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial, wraps
from typing import Any, cast

from jinja2 import ChainableUndefined, StrictUndefined, TemplateError, Undefined, nodes
from jinja2.environment import Environment, Template
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from tagi.data.budget import OverLimit, budget, within

_FILTERS = (
    *("abs", "capitalize", "count", "first", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
"""Jinja's own filters that give no more than they are given."""
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        [
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal"),
            *("isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip"),
            *("partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit"),
            *("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        ]
    ),
    Mapping: frozenset(["get", "items", "keys", "values"]),
    Sequence: frozenset(["count", "index"]),
    int: frozenset(),
    float: frozenset(),
}
"""Methods of plain values; others can make anything as long as one likes, such as `ljust` and `to_bytes`."""
_DIGITS = 20
"""Of a rounded number."""


class Mask(ChainableUndefined):
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

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _yes
    __call__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = _same
    __html__ = __str__


class _Watched(NodeTransformer):
    """Puts a filter of ours around everything that the sandbox itself does not ask us about."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _through(cast(nodes.Expr, node.iter), "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _through(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        if not isinstance(node.node, nodes.Call):  # calls are measured, and may give a namespace
            node.node = _through(cast(nodes.Expr, node.node), "_measured")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _through(node.expr, "_measured")
        for operand in node.ops:
            operand.expr = _through(operand.expr, "_measured")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        """A place that is computed, such as a label, counts from the front; `[-1]` as it is written is the last."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Const | nodes.Slice | nodes.Neg):
            node.arg = _through(node.arg, "_place")
        return node


def _through(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with every loop counted and everything that can grow measured."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Watched().visit(super()._parse(source, name, filename))

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        for macro in source.find_all((nodes.Macro, nodes.CallBlock)):
            raise SecurityError(f"line {macro.lineno}: macros are not allowed")
        return super()._generate(source, *arguments, **options)

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What blocks and captured text are joined by."""
        return _join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (allowed is None or attr in allowed)

    def wrap_str_format(self, value: Any) -> None:
        """No `format` of the sandbox's own takes the place of Python's, which is unsafe as other methods are."""

    def call(self, context: Context, obj: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        own = budget()
        own.step()
        own.measured([*arguments, *options.values()])
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *arguments, **options)
        if isinstance(owner, str) and name == "join":
            return _join(arguments[0], owner)
        made = super().call(context, obj, *arguments, **options)
        return made if isinstance(made, Namespace) else own.measured(made)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        own = budget()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting by % is not allowed")
        if operator == "**":
            own.bound(abs(int(right)) * max(abs(int(left)).bit_length(), 1))
        if operator == "*":
            own.bound(_product(left, right))
        return own.measured(super().call_binop(context, operator, left, right))


def _product(left: Any, right: Any) -> int:
    """The size of a product, before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | Sequence) and isinstance(other, int):
            return len(one) * other
    return 1


def _measured(value: Any) -> Any:
    return budget().measured(value)


def _printed(value: Any) -> Any:
    """What is printed or joined; nothing stands for what is not there."""
    if value is None:
        raise ValueError("a field that it prints is null")
    return _measured(value)


def _place(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise ValueError(f"{value!r} is no place to take from a list")
    return value


def _counted(values: Iterable[Any]) -> list[Any]:
    """What a loop runs over, counted item by item."""
    counted: list[Any] = []
    for value in values:
        budget().step()
        counted.append(value)
    return _measured(counted)


def _join(values: Iterable[Any], separator: str = "") -> str:
    own = budget()
    texts, size = [], 0
    for value in values:
        texts.append(str(_printed(value)))
        size += len(texts[-1]) + len(separator)
        own.bound(size)
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    whole, old, new = str(text), str(old), str(new)
    budget().bound(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _whole(value: Any) -> int:
    number = float(value) if isinstance(value, str) and "." in value else value
    if isinstance(number, float) and not number.is_integer():
        raise ValueError
    return int(number)


def _number(kind: Callable[[Any], float], said: str, value: Any, default: float | None = None) -> float:
    """Jinja's `int` and `float`, but for what is no number and 0 there: an empty label is not the first choice."""
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        if default is None:
            raise ValueError(f"{value!r} is no {said}") from None
        return default


def _round(value: Any, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > _DIGITS:
        raise OverLimit(f"it rounds to more than {_DIGITS} digits")
    return FILTERS["round"](value, precision, method)


def _sum(values: Iterable[Any], start: Any = 0) -> Any:
    """The sum of numbers; lists are added by `+`, where they are measured."""
    numbers = [_number(float, "number", one) if isinstance(one, str) else one for one in [start, *values]]
    if not all(isinstance(one, int | float | Undefined) for one in numbers):
        raise SecurityError("only numbers can be summed")
    return sum(numbers[1:], numbers[0])


@pass_context
def _choice(context: Context, values: Sequence[Any]) -> Any:
    """One of the values, drawn from the rendering's own seed (PromptSource's `choice`)."""
    drawn = list(values)
    if not drawn and context.environment.undefined is Mask:
        return Mask(name="choice")
    return budget().random.choice(drawn)


def _most_frequent(values: Iterable[Any]) -> list[Any]:
    """The values that occur most often (PromptSource's `most_frequent`)."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]]


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts as a turn, and whose arguments and result are measured."""

    @wraps(function)  # takes over the mark by which Jinja knows that a filter wants the context
    def bounded(*arguments: Any, **options: Any) -> Any:
        own = budget()
        own.step()
        for one in (*arguments, *options.values()):
            if not isinstance(one, Context | Environment | EvalContext):  # which Jinja itself passes
                own.measured(one)
        return own.measured(function(*arguments, **options))

    return bounded


_OWN: dict[str, Callable[..., Any]] = {
    "choice": _choice,
    "float": partial(_number, float, "number"),
    "int": partial(_number, _whole, "whole number"),
    "join": _join,
    "most_frequent": _most_frequent,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
}
_WATCHING: dict[str, Callable[..., Any]] = {"_joined": _join, "_counted": _counted, "_measured": _measured}


@cache
def environment(*, masks: bool) -> ImmutableSandboxedEnvironment:
    """Jinja as templates see it; with `masks`, every field is unknown and stands for its name."""
    finalize = None if masks else _printed
    made = _Environment(undefined=Mask if masks else StrictUndefined, auto_reload=False, finalize=finalize)
    filters = {name: FILTERS[name] for name in _FILTERS} | _OWN
    made.filters = {name: _bounded(one) for name, one in filters.items()} | _WATCHING
    made.filters["_place"] = _measured if masks else _place
    made.globals = {
        "range": made.globals["range"],
        "zip": lambda *each: list(zip(*each, strict=False)),
        "namespace": made.globals["namespace"],
    }
    return made


@cache
def compiled(body: str, *, masks: bool) -> Template | str:
    """A template ready to run, its constant parts computed within limits; or why it is none."""
    try:
        with within(""):
            return environment(masks=masks).from_string(body)
    except (TemplateError, SyntaxError, ValueError, OverflowError, RecursionError) as error:
        return f"is no Jinja ({' '.join(str(error).split())})"


def generate(template: Template, values: Mapping[str, Any], *, seed: str) -> str:
    """Render within limits: an OverLimit past them; whatever else its program raises is raised here."""
    with within(seed):
        return _join(template.generate(values))
