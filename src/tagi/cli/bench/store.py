"""`tagi bench store`: an adapter store with many registered tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.bench import options
from tagi.cli.bench.results import JsonFile, PlotFile, output
from tagi.cli.common import Json, bar, table

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.bench.store import StoreBench

EXAMPLE = "Example: tagi bench store --shape t5-small --tasks 100000 --asked 1000"


def store(
    context: typer.Context,
    shape: options.ShapeName = "t5-small",
    tasks: Annotated[int, typer.Option(min=1, help="Registered tasks.")] = 100_000,
    words: Annotated[int, typer.Option(min=1, help="Words of each instruction.")] = 79,
    asked: Annotated[int, typer.Option(min=0, help="Adapters asked for at random before the timing.")] = 1_000,
    memory: Annotated[float, typer.Option(min=0.0, help="Adapters in memory, GiB at most.")] = 1.0,
    disk: Annotated[float, typer.Option(min=0.0, help="Everything on disk, GiB at most.")] = 2.0,
    rank: options.Rank = 32,
    rounds: options.Rounds = 7,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Fill an adapter store and time a hit in memory, a hit on disk and a regeneration, on random weights."""
    out = output(context, json_file, plot, as_json)
    from tagi.bench.store import store_bench

    bounds = (int(memory * 2**30), int(disk * 2**30))
    chosen = options.named(shape)
    with tempfile.TemporaryDirectory() as folder, bar("asking for adapters") as report:
        found = store_bench(
            chosen,
            Path(folder),
            tasks=tasks,
            length=words,
            asked=asked,
            rounds=rounds,
            rank=rank,
            bounds=bounds,
            progress=report,
        )
    out.show([found.times], [_table(found, f"{tasks:,} tasks, {shape}")], bounds=bounds, **found.as_json())


def _table(found: StoreBench, title: str) -> Table:
    shown = table(title, ("", ""))
    shown.add_row("instructions that came back word for word", f"{found.kept:,} of {found.tasks:,}")
    for name, size in (
        ("an adapter", found.adapter_bytes),
        ("adapters in memory", found.memory_bytes),
        ("everything on disk", found.disk_bytes),
        ("the whole process at its largest", found.process_bytes),
    ):
        shown.add_row(name, f"{size / 2**20:,.1f} MiB")
    shown.add_row("registering one", f"{found.register_s * 1e6:,.0f} µs")
    for name in ("memory", "disk", "generated", "damaged", "unwritten"):
        shown.add_row(f"given out: {name}", f"{getattr(found.use, name):,}")
    return shown
