"""`tagi methods`: every system as one point in one design space; the paper's Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tagi.cli.common import Json, mark, print_json, stdout, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tagi.methods import Method

EXAMPLE = "Example: tagi methods --json"
PAPER = {
    "pretrained": "Pre-Train",
    "fuses_instruction": "Instr. Fus.",
    "low_inference_cost": "Low Infer. Cost",
}
DESIGN = {
    "prompt": "prompt",
    "lora": "LoRA",
    "fuses_encoder": "encoder fusion",
    "fuses_decoder": "decoder concat.",
}


SIGN_WIDTH = 10


def methods(as_json: Json = False) -> None:
    """Show the systems that a config can name: Table 1 of the paper, and what each is made of."""
    from tagi.methods import METHODS

    described = [_describe(method) for method in METHODS]
    if as_json:
        print_json({"methods": described})
        return
    console = stdout()
    console.print(_table(console, "Table 1", described, ("name", "title"), PAPER))
    parts = [method | {"trained": ", ".join(method["trainable"]) or "nothing"} for method in described]
    console.print(_table(console, "Design space", parts, ("name", "trained"), DESIGN))


def _describe(method: Method) -> dict[str, Any]:
    answers = {name: getattr(method, name) for name in (*PAPER, *DESIGN)}
    return {"name": method.name, "title": method.title, **answers, "trainable": list(method.trainable)}


def _table(
    console: Console,
    title: str,
    described: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    answers: Mapping[str, str],
) -> Table:
    made = table(title, [*texts, *answers.values()], justify="center")
    made.columns[0].no_wrap = True
    made.columns[1].justify = "left"
    for column in made.columns[len(texts) :]:
        column.max_width = SIGN_WIDTH
    for method in described:
        signs = [mark(console, method[name]) for name in answers]
        made.add_row(*(method[name] for name in texts), *signs)
    return made
