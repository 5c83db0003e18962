"""`tagi runs`: the complete runs that `tagi train` knows by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tagi.cli.common import Json, bar, print_json, stdout, table

EXAMPLE = "Example: tagi runs"


def runs(
    costs: Annotated[
        bool, typer.Option("--costs", help="Count their FLOPs and memory too, in a minute or two.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the named runs with their stages and steps."""
    from tagi.repro.listing import HEADERS, Row, row
    from tagi.repro.runs import RUNS

    found: list[Row] = []
    with bar("planning the runs") as report:
        for number, name in enumerate(RUNS):
            found.append(row(name, costs=costs))
            report(number + 1, len(RUNS))
    if as_json:
        print_json({"runs": [asdict(one) for one in found]})
        return
    made = table("runs", HEADERS[: len(found[0].cells())], justify="left")
    for one in found:
        made.add_row(*one.cells())
    stdout().print(made)
