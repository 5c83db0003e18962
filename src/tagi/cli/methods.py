"""`tagi methods`: every system as one point in one design space; the paper's Table 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagi.cli.common import Json, mark, print_json, stdout

if TYPE_CHECKING:
    from tagi.methods import Method

EXAMPLE = "Example: tagi methods --json"


def methods(as_json: Json = False) -> None:
    """Show the systems that can be trained: Table 1 of the paper, and what tells them apart."""
    from tagi.methods import METHODS

    described = [_describe(method) for method in METHODS]
    if as_json:
        print_json({"methods": described})
        return
    from rich import box
    from rich.table import Table

    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, caption="P.T. pretrained, I.F. instruction fusion, L.C. low inference cost")
