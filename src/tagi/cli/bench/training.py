"""`tagi bench train` and `tagi bench logits`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tagi.cli.bench import options
from tagi.cli.bench.results import JsonFile, PlotFile, output
from tagi.cli.common import Json, bar, print_json, stdout, table
from tagi.errors import ConfigError

TRAIN_EXAMPLE = "Example: tagi bench train --shape micro --rounds 5 --json-file train.json"
LOGITS_EXAMPLE = "Example: tagi bench logits --config configs/ablation/full.yaml"
CASES = ("teachers", "step", "t5", "text")


def train(
    context: typer.Context,
    cases: Annotated[
        list[str] | None, typer.Argument(help=f"What to compare: {', '.join(CASES)}; all by default.")
    ] = None,
    shape: options.ShapeName = "micro",
    rank: options.Rank = 8,
    teachers: Annotated[int, typer.Option(min=1, help="Teachers in the bank.")] = 16,
    teacher_rows: Annotated[int, typer.Option(min=1, help="Rows of each teacher in a step.")] = 2,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in a batch.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task in a batch.")] = 4,
    text_rows: Annotated[int, typer.Option(min=1, help="Packed rows of text in a batch.")] = 16,
    text_length: Annotated[int, typer.Option(min=8, help="Input tokens of a packed row; targets are a quarter.")] = 256,
    rounds: options.Rounds = 7,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Training: the teacher bank against peft, TAGI's step against metatraining's, our T5 against transformers'.

    The last on prompts (t5) and on documents of many lengths (text).
    """
    out = output(context, json_file, plot, as_json)
    from tagi.bench import training
    from tagi.bench.training import Lengths
    from tagi.config import CorpusConfig

    if unknown := sorted(set(cases or ()) - set(CASES)):
        raise ConfigError(f"{unknown[0]}: there is no such comparison; there are {', '.join(CASES)}")
    chosen, lengths, found = options.named(shape), Lengths(tasks=tasks, rows=rows), []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases or CASES:
            with bar(case) as report:
                if case == "teachers":
                    found.append(training.bank_against_peft(chosen, teachers, teacher_rows, rank, rounds, report))
                elif case == "step":
                    kept = Path(folder) / "logits"
                    found.append(training.step_against_metatraining(chosen, lengths, rank, rounds, kept, report))
                elif case == "text":
                    corpus = CorpusConfig(c4="-", length=text_length, target_length=max(text_length // 4, 8))
                    found.append(training.text_against_transformers(chosen, corpus, text_rows, rounds, report))
                else:
                    found.append(training.t5_against_transformers(chosen, lengths, rounds, report))
    out.show(found)


def logits(
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="A run that distils from a teacher.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config fields to set.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches to take the loss over.")] = 8,
    as_json: Json = False,
) -> None:
    """Cached teacher logits: error of the loss and size on disk against the number of tokens kept."""
    from tagi.bench.logits import against_k
    from tagi.config.files import load

    with bar("comparing") as report:
        lines = against_k(load(config_file, overrides or ()), batches, report)
    if as_json:
        print_json({"lines": [line.as_json() for line in lines]})
        return
    made = table("cached teacher logits", ("tokens kept", "loss", "error", "bytes a token"))
    for line in lines:
        made.add_row(f"{line.k:,}", f"{line.loss:.6f}", f"{line.error:.1e}", f"{line.bytes_per_token:,.0f}")
    stdout().print(made)
