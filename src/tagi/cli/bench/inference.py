"""`tagi bench flops` and `tagi bench inference`: what a task costs, counted and timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.bench import options
from tagi.cli.bench.results import JsonFile, PlotFile, output
from tagi.cli.common import Compile, Json, bar, print_json, stdout, table

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.bench.tasks import SystemCost
    from tagi.methods import Method

FLOPS_EXAMPLE = "Example: tagi bench flops --data natural-instructions --shape t5-base --positives 2"
EXAMPLE = "Example: tagi bench inference --data natural-instructions --shape t5-small --transformers --plot times.png"
SAME_AS_METATRAIN = ("no_ft", "full_ft")
"""Systems that do at inference what metatraining does."""


def flops(
    data: options.Data,
    shape: options.ShapeName = "t5-base",
    positives: options.Shots = 0,
    rank: options.Rank = 32,
    hidden: options.Hidden = 128,
    width: options.Width = None,
    tokenizer: options.TokenizerOption = None,
    as_json: Json = False,
) -> None:
    """Count what every system spends on a task of 100 examples, at the lengths of the benchmark's test tasks."""
    from dataclasses import asdict

    from tagi.bench.tasks import mean_lengths, system_costs

    sizes = options.setup(shape, rank, hidden, width, "fp32")
    lengths = options.lengths_of_tasks(data, positives, tokenizer)
    found = system_costs(sizes.shape, sizes.generator, sizes.fused, lengths)
    if as_json:
        asked = {
            "data": str(data),
            "shape": shape,
            "positives": positives,
            "rank": rank,
            "hidden": hidden,
            "width": width,
        }
        print_json({"systems": [asdict(one) for one in found], "lengths": mean_lengths(lengths), "command": asked})
        return
    stdout().print(_flops_table(found, f"100 examples of a task, {shape}, {positives} demonstrations"))


def inference(
    context: typer.Context,
    data: options.Data,
    shape: options.ShapeName = "t5-small",
    positives: options.Shots = 0,
    rank: options.Rank = 32,
    hidden: options.Hidden = 128,
    width: options.Width = None,
    tokenizer: options.TokenizerOption = None,
    batch: options.Batches = None,
    system: Annotated[list[str] | None, typer.Option(help="Only this system; may be given several times.")] = None,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Compare with the instruction in the prompt of `transformers`.")
    ] = False,
    dtype: options.Dtype = "fp32",
    compiled: Compile = False,
    rounds: options.Rounds = 5,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Time every system at the benchmark's mean lengths, on random weights: answering, adapting, and a whole task."""
    out = output(context, json_file, plot, as_json, dtype)
    from tagi.bench.inference import one_task
    from tagi.bench.tasks import mean_lengths, mean_task

    sizes, systems = options.setup(shape, rank, hidden, width, dtype), _systems(system)
    lengths = options.lengths_of_tasks(data, positives, tokenizer)
    with bar("timing") as report:
        found = one_task(
            sizes,
            systems,
            mean_task(lengths),
            batch or options.BATCHES,
            rounds,
            report,
            transformers=transformers,
            compiled=compiled,
        )
    out.show(found, lengths=mean_lengths(lengths))


def _systems(names: Sequence[str] | None) -> list[Method]:
    """The systems asked for, or all that differ at inference; the one that others are measured against comes first."""
    from tagi.methods import METHODS, get

    chosen = [get(name) for name in names or ()]
    chosen = chosen or [method for method in METHODS if method.name not in SAME_AS_METATRAIN]
    return sorted(chosen, key=lambda method: method.name != "metatrain")


def _flops_table(found: Sequence[SystemCost], title: str) -> Table:
    shown = table(f"{title}, GFLOPs", ("", "once", "answers", "mean ratio", "sum ratio", "to the floor"))
    shown.columns[0].no_wrap = True
    for one in found:
        once, answers = f"{one.adaptation / 1e9:,.1f}", f"{one.answering / 1e9:,.1f}"
        ratios = (f"{ratio:.2f}" for ratio in (one.mean_of_ratios, one.ratio_of_sums, one.over_floor))
        shown.add_row(one.name, once, answers, *ratios)
    return shown
