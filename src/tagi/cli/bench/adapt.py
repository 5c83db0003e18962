"""`tagi bench adapt`: what it costs to prepare tasks, and from how many requests on it pays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.bench import options
from tagi.cli.bench.results import JsonFile, PlotFile, output
from tagi.cli.common import Json, bar, table

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.bench.adapt import AdaptBench

EXAMPLE = "Example: tagi bench adapt --data natural-instructions --shape t5-small --positives 2 --plot adapt.png"
TASKS, SYSTEMS = (1, 16, 256), ("tagi",)


def adapt(
    context: typer.Context,
    data: options.Data,
    shape: options.ShapeName = "t5-small",
    positives: options.Shots = 0,
    rank: options.Rank = 32,
    hidden: options.Hidden = 128,
    width: options.Width = None,
    tokenizer: options.TokenizerOption = None,
    tasks: Annotated[
        list[int] | None, typer.Option(min=1, max=options.MOST, help="Tasks to prepare (default: 1, 16 and 256).")
    ] = None,
    together: Annotated[
        int,
        typer.Option(
            min=1, max=options.MOST, help="Instructions in an encoder pass, those of similar length together."
        ),
    ] = 16,
    batch: options.Batches = None,
    system: Annotated[
        list[str] | None, typer.Option(help="A system that prepares tasks; may be given several times (default: tagi).")
    ] = None,
    dtype: options.Dtype = "fp32",
    rounds: options.Rounds = 5,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Time and weigh preparing tasks against plain encoder passes, and find the requests from which it pays.

    Random weights; instructions as long as the benchmark's, requests of its mean lengths.
    """
    out = output(context, json_file, plot, as_json, dtype)
    from tagi.bench.adapt import adapt_bench, check
    from tagi.bench.tasks import mean_lengths, mean_task
    from tagi.methods import get

    systems = [get(name) for name in system or SYSTEMS]
    check(systems)
    sizes, lengths = (
        options.setup(shape, rank, hidden, width, dtype),
        options.lengths_of_tasks(data, positives, tokenizer),
    )
    with bar("timing") as report:
        found = adapt_bench(
            sizes,
            systems,
            lengths,
            mean_task(lengths),
            counts=tasks or TASKS,
            together=together,
            batches=batch or options.BATCHES,
            rounds=rounds,
            progress=report,
        )
    out.show(found.comparisons, [*_tables(found)], lengths=mean_lengths(lengths), **found.as_json())


def _tables(found: AdaptBench) -> Iterator[Table]:
    memory = table("memory of preparing, MiB", ("tasks", "", "at most", "kept of it"))
    for one in found.memory:
        memory.add_row(f"{one.tasks:,}", one.name, _mib(one.bytes.peak), _mib(one.bytes.kept))
    yield memory
    sizes = table("one task, MiB", ("", "prepared", "adapter", "keys, values", "folded weights", "on disk"))
    for one in found.sizes:
        each = (one.prepared, one.adapter, one.keys_values, one.folded, one.disk)
        sizes.add_row(one.name, *map(_mib, each))
    yield sizes
    pays = table("requests from which preparing pays against the prompt", ("", "at a time", "requests"))
    for one in found.break_even:
        pays.add_row(one.name, f"{one.batch:,}", "never" if one.requests is None else f"{one.requests:,}")
    yield pays


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f}"
