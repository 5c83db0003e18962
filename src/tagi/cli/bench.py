"""`tagi bench`: what things cost, as ratios measured side by side."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Json, bar, print_json, stdout, table
from tagi.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.bench.timing import Comparison
    from tagi.config import T5Shape

EXAMPLE = "Example: tagi bench train --shape micro --rounds 5 --json-file train.json"
app = typer.Typer(help="Measure what things cost, as ratios of alternating runs.", no_args_is_help=True)
CASES = ("teachers", "step", "t5")

MICRO = {"vocab_size": 4000, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4}
"""The shape `micro`: 3 + 3 blocks of width 128."""


@app.command("train", epilog=EXAMPLE)
def train(
    cases: Annotated[
        list[str] | None, typer.Argument(help=f"What to compare: {', '.join(CASES)}; all by default.")
    ] = None,
    shape: Annotated[str, typer.Option(help="micro, or a named T5 such as t5-small.")] = "micro",
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 8,
    teachers: Annotated[int, typer.Option(min=1, help="Teachers in the bank.")] = 16,
    teacher_rows: Annotated[int, typer.Option(min=1, help="Rows of each teacher in a step.")] = 2,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in a batch.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task in a batch.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the cases take turns.")] = 7,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Write every round here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Training: the teacher bank against peft, TAGI's step against metatraining's, our T5 against transformers'."""
    from tagi.bench import training
    from tagi.bench.training import Lengths
    from tagi.files import write_text

    if unknown := sorted(set(cases or ()) - set(CASES)):
        raise ConfigError(f"{unknown[0]}: there is no such comparison; there are {', '.join(CASES)}")
    chosen, lengths, found = _shape(shape), Lengths(tasks=tasks, rows=rows), []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases or CASES:
            with bar(case) as report:
                if case == "teachers":
                    found.append(training.bank_against_peft(chosen, teachers, teacher_rows, rank, rounds, report))
                elif case == "step":
                    kept = Path(folder) / "logits"
                    found.append(training.step_against_metatraining(chosen, lengths, rank, rounds, kept, report))
                else:
                    found.append(training.t5_against_transformers(chosen, lengths, rounds, report))
    result = {"shape": shape, "rounds": rounds, "comparisons": [one.as_json() for one in found]}
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=1))
    if as_json:
        print_json(result)
        return
    for one in found:
        stdout().print(_table(one))


@app.command("logits", epilog="Example: tagi bench logits --config configs/ablation/full.yaml")
def logits(
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="A run that distils from a teacher.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config fields to set.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches to take the loss over.")] = 8,
    as_json: Json = False,
) -> None:
    """Cached teacher logits: error of the loss and size on disk against the number of tokens kept."""
    from tagi.bench.logits import against_k
    from tagi.config import load

    with bar("comparing") as report:
        lines = against_k(load(config_file, overrides or ()), batches, report)
    if as_json:
        print_json({"lines": [line.as_json() for line in lines]})
        return
    made = table("cached teacher logits", ("tokens kept", "loss", "error", "bytes a token"))
    for line in lines:
        made.add_row(f"{line.k:,}", f"{line.loss:.6f}", f"{line.error:.1e}", f"{line.bytes_per_token:,.0f}")
    stdout().print(made)


def _shape(name: str) -> T5Shape:
    from tagi.config import T5Shape, parse
    from tagi.shapes import named_shape

    return parse(T5Shape, MICRO if name == "micro" else named_shape(name), source="--shape")


def _table(comparison: Comparison) -> Table:
    made = table(comparison.title, ("", "median ms", "ratio", "range"))
    for case in comparison.as_json()["cases"]:
        low, high = case["ratio_range"]
        made.add_row(case["name"], f"{case['median_s'] * 1000:,.1f}", f"{case['ratio']:.2f}", f"{low:.2f}-{high:.2f}")
    return made
