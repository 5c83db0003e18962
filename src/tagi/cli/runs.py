"""`tagi runs`: the complete runs that `tagi train` knows by name."""

from __future__ import annotations

from dataclasses import asdict

from tagi.cli.common import Json, print_json, stdout, table, waiting

EXAMPLE = "Example: tagi runs"


def runs(as_json: Json = False) -> None:
    """List the named runs with their stages, steps, total FLOPs and memory."""
    from tagi.repro.listing import HEADERS, row
    from tagi.repro.runs import RUNS

    with waiting("planning the runs"):
        found = [row(name) for name in RUNS]
    if as_json:
        print_json({"runs": [asdict(one) for one in found]})
        return
    made = table("runs", HEADERS, justify="left")
    for one in found:
        made.add_row(*one.cells())
    stdout().print(made)
