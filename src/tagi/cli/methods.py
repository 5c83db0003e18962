"""`tagi methods`: every system as one point in one design space; the paper's Tables 1 and 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tagi.cli.common import Json, mark, print_json, stdout, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXAMPLE = "Example: tagi methods --json"
TABLE_8 = {
    "meta_trained": "Meta-Train",
    "pretrained": "Pre-Train",
    "concatenates_instruction": "Instr. Concat.",
    "fuses_instruction": "Instr. Fus.",
    "low_update_parameters": "Low Up. Params",
    "low_inference_cost": "Low Infer. Cost",
    "distilled": "Instr. Learning",
    "unseen_tasks": "Unseen Task",
}
TABLE_1 = {
    name: TABLE_8[name]
    for name in ("pretrained", "fuses_instruction", "low_inference_cost", "distilled", "unseen_tasks")
}
DESIGN = {
    "prompt": "prompt",
    "fuses_encoder": "encoder fusion",
    "fuses_decoder": "decoder concat.",
    "on_target": "on the target",
}
SIGN_WIDTH = 10


def methods(as_json: Json = False) -> None:
    """Show the systems that a config can name: Tables 1 and 8 of the paper, and what each is made of."""
    from tagi.methods import METHODS

    asked = {**TABLE_8, **DESIGN}
    described: list[dict[str, Any]] = [
        {"name": one.name, "title": one.title}
        | {name: getattr(one, name) for name in asked}
        | {"writes": list(one.writes), "demonstrations": one.demonstrations, "trainable": list(one.trainable)}
        for one in METHODS
    ]
    if as_json:
        print_json({"methods": described})
        return
    console = stdout()
    console.print(_table(console, "Table 1", described, ("name", "title"), TABLE_1))
    console.print(_table(console, "Table 8", described, ("name",), TABLE_8))
    parts = [
        method
        | {
            "writes": ", ".join(method["writes"]) or "nothing",
            "demos": method["demonstrations"] or "if given",
            "trained": ", ".join(method["trainable"]) or "nothing",
        }
        for method in described
    ]
    console.print(_table(console, "Design space", parts, ("name", "writes", "demos", "trained"), DESIGN))


def _table(
    console: Console,
    title: str,
    described: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    answers: Mapping[str, str],
) -> Table:
    made = table(title, [*texts, *answers.values()], justify="center")
    made.columns[0].no_wrap = True
    for column in made.columns[1 : len(texts)]:
        column.justify = "left"
    for column in made.columns[len(texts) :]:
        column.max_width = SIGN_WIDTH
    for method in described:
        made.add_row(*(method[name] for name in texts), *(mark(console, method[name]) for name in answers))
    return made
