"""`tagi bench mixed`: a batch with a different task in every row."""

from __future__ import annotations

from typing import Annotated

import typer

from tagi.cli.bench import options
from tagi.cli.bench.results import JsonFile, PlotFile, output
from tagi.cli.common import Compile, Json, bar, note

EXAMPLE = "Example: tagi bench mixed --tasks 8 --tasks 64 --rounds 5 --plot mixed.png"
TASKS = (1, 8, 64, 256)


def mixed(
    context: typer.Context,
    shape: options.ShapeName = "t5-small",
    tasks: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=options.MOST, help="Different tasks in the batch, one example each (default: 1, 8, 64 and 256)."
        ),
    ] = None,
    instruction: Annotated[int, typer.Option(min=1, help="Tokens of an instruction.")] = 79,
    length: Annotated[int, typer.Option("--input", min=1, help="Tokens of an input.")] = 116,
    target: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 12,
    rank: options.Rank = 32,
    hidden: options.Hidden = 128,
    dtype: options.Dtype = "fp32",
    peft: Annotated[bool, typer.Option("--peft/--no-peft", help="Compare with peft's adapter_names.")] = True,
    peft_up_to: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tasks never seen that peft loads in every round, at most; its time grows with their square "
            "(half a minute for 64 of t5-small, 8 minutes for 256).",
        ),
    ] = 64,
    in_turn_up_to: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tasks answered one after another in every round, at most (for 64 of t5-small five times as long as "
            "all of them in a batch).",
        ),
    ] = 64,
    compiled: Compile = False,
    rounds: options.Rounds = 5,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Time a batch with a different task in every row, on random weights: adapters at hand, and tasks never seen."""
    out = output(context, json_file, plot, as_json, dtype)
    from tagi.bench import mixed as cases
    from tagi.model.costs import TaskLengths

    sizes, task, found = (
        options.setup(shape, rank, hidden, None, dtype),
        TaskLengths(instruction, 0, 0, length, target),
        [],
    )
    for count in tasks or TASKS:
        turns = count <= in_turn_up_to
        with bar(f"{count} tasks, adapters at hand") as report:
            warm = cases.warm(sizes, task, count, rounds, peft=peft, in_turn=turns, compiled=compiled, progress=report)
            found.append(warm)
        if not turns:
            note(f"{count} tasks: not one after another, which takes too long; see --in-turn-up-to")
        loads = peft and count <= peft_up_to
        with bar(f"{count} tasks never seen") as report:
            found.append(cases.cold(sizes, task, count, rounds, peft=loads, progress=report))
        if peft and not loads:
            note(f"{count} tasks never seen: without peft, whose loading takes too long; see --peft-up-to")
    out.show(found)
