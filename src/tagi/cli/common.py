"""What every command shares: results to stdout, all else to stderr, bars, JSON, opening a checkpoint."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

    from tagi.infer.engine import Tagi

LINE_EVERY = 10.0
"""Seconds between lines that say how far the work is, where stderr is no terminal and so can show no bar."""
Report = Callable[[int, int], None]
"""Told how much is done, and of how much."""
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="DIR", help="A TAGI checkpoint, folder or hub name (default: the bundled one)."
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", metavar="DIR", help="Where the checkpoint's frozen backbone lies now."),
]
Examples = Annotated[
    list[str] | None,
    typer.Option("--example", metavar='"IN => OUT"', help="A worked example of the task; may be given several times."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def stdout() -> Console:
    """The console for results. Strings are printed as they are: names and texts of others hold brackets and colons,
    so that nothing here is markup; what has a colour is a `Text`."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console for remarks, bars and errors; see `stdout`."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def note(*texts: str) -> None:
    """Remarks that a person should see beside the results."""
    for text in texts:
        stderr().print(Text.assemble(("note:", "yellow"), f" {text}"), soft_wrap=True)


def print_json(values: Mapping[str, Any]) -> None:
    """The one JSON object of a command."""
    typer.echo(json.dumps(values, indent=2))


def one_line(text: str) -> str:
    r"""A text with its line breaks written out (`\n`), so that it takes one line whatever reads the lines."""
    return "".join(one if one.splitlines() == [one] else one.encode("unicode_escape").decode() for one in text)


def mark(console: Console, good: bool | int) -> Text:
    """A tick, or as many as counted, or a cross; words on a terminal that knows no such characters."""
    signs = ("ok", "no") if console.options.ascii_only else ("✓", "✗")
    return Text(signs[0] * int(good), style="green") if good else Text(signs[1], style="red")


def table(title: str, headers: Sequence[str], justify: JustifyMethod = "right") -> Table:
    """An empty table, its first column to the left, in which no text is ever cut."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, header in enumerate(headers):
        made.add_column(header, justify=justify if number else "left", overflow="fold")
    return made


@contextmanager
def bar(label: str, *, counted: bool = True) -> Iterator[Report]:
    """A bar with the time left on stderr, gone when done, or a moving one for work that is not counted; where stderr is
    no terminal, a line now and then."""
    from rich import progress

    console = stderr()
    if not console.is_interactive:
        yield _lines(label)
        return
    # what is printed meanwhile goes above the bar if both are on one terminal, and to where stdout goes if not
    text, above = progress.TextColumn("{task.description}", markup=False), sys.stdout.isatty()
    columns = (
        (progress.MofNCompleteColumn(), progress.TimeRemainingColumn()) if counted else (progress.TimeElapsedColumn(),)
    )
    with progress.Progress(
        text, progress.BarColumn(), *columns, console=console, transient=True, redirect_stdout=above
    ) as shown:
        task = shown.add_task(label, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


waiting = partial(bar, counted=False)


def _lines(label: str) -> Report:
    """Tells how far the work is in lines, none of them in the first seconds."""
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not done or now - last < LINE_EVERY:
            return
        last, left = now, (now - began) / done * (total - done)
        stderr().print(f"{label}: {done:,} of {total:,}, about {left:,.0f} s left", soft_wrap=True)

    return report


@contextmanager
def uncollected() -> Iterator[None]:
    """Python does not search for garbage meanwhile: what is imported and opened are many objects, which all stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def open_tagi(checkpoint: str | None, backbone: str | None = None, shown: int | None = None) -> Tagi:
    """The model of a checkpoint, or the bundled one, on the GPU where there is one; it shows so many demonstrations, or
    as many as in training."""
    with waiting("opening the model"), uncollected():
        from tagi.infer.engine import Tagi

        tagi = Tagi.from_pretrained(checkpoint, backbone=backbone)
        return tagi if shown is None else tagi.showing(shown)
