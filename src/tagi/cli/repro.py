"""`tagi repro`: the paper's tables and figures with our own runs beside its numbers."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagi.cli.common import Json, note, print_json, stderr, waiting
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.repro.beds import Entry, Stage
    from tagi.repro.experiments import Experiment
    from tagi.repro.tables import Scores

EXAMPLE = "Example: tagi repro table4 --scale micro --run"
Name = Literal["table1", "table2", "table3", "table4", "table7", "table8", "table9", "figure3", "figure4"]
Scale = Literal["paper", "nano", "micro"]


def repro(
    name: Annotated[Name, typer.Argument(help="Which of the paper's tables and figures.")],
    scale: Annotated[
        Scale, typer.Option(help="The paper's sizes; small models on the real data; or synthetic tasks.")
    ] = "micro",
    run: Annotated[
        bool, typer.Option("--run", help="Train what is missing, one after another; goes on if stopped.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every system, from seed 0 on.")] = 1,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Holds sni, p3 and c4 (nano, paper).")] = Path("data"),
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the documents go.")] = Path(
        "runs/repro"
    ),
    as_json: Json = False,
) -> None:
    """Show a table or figure of the paper with our own numbers in columns of their own.

    Finds finished runs under runs/, scores them, and says what is missing, with the commands and the hours that they
    take. Writes Markdown and JSON, of figures SVG and PNG too.
    """
    from tagi.files import check_folder
    from tagi.repro import figures, tables
    from tagi.repro.experiments import experiment
    from tagi.repro.finding import finished, hours

    check_folder(output)
    if name in ("table1", "table8"):
        _show(output / name, *_methods(name), as_json)
        return
    made = experiment(name, scale, str(data), range(seeds))
    stages = made.stages()
    missing = [stage for stage in stages if not finished(stage)]
    if run:
        _train(missing, len(stages))
        missing = []
    scores = _scores(made, missing)
    with waiting("timing steps"):
        estimates = hours(missing, stages)
    commands = [
        f"{_command(stage)}  # {stage.run.training.steps:,} steps" + (f", about {time:.2g} hours here" if time else "")
        for stage, time in zip(missing, estimates, strict=True)
    ]
    place, values = output / f"{name}-{scale}", {"name": name, "scale": scale, **tables.as_json(made, scores)}
    values["missing"] = [
        {"output": stage.output, "command": _command(stage), "steps": stage.run.training.steps, "hours": time}
        for stage, time in zip(missing, estimates, strict=True)
    ]
    text = tables.markdown(values, commands)
    if name.startswith("figure"):
        drawn = figures.draw(values["parts"], output, place.name)
        text += f"\n![{made.title}]({drawn[0].name})\n"
    _show(place, text, values, as_json)


def _show(place: Path, text: str, values: Mapping[str, Any], as_json: bool) -> None:
    """Write a document, and print it."""
    from tagi.files import write_text

    write_text(place.with_suffix(".md"), text)
    write_text(place.with_suffix(".json"), json.dumps(values, indent=2) + "\n")
    print_json(values) if as_json else typer.echo(text, nl=False)
    stderr().print(f"wrote {place}.md and {place.name}.json", soft_wrap=True)


def _train(missing: Sequence[Stage], total: int) -> None:
    """Train what is missing, each as its command would; what is finished stays, whatever is raised."""
    for stage in missing:
        for part in stage.run.data.by_field.values():
            if part.path is not None:
                _check_data(part.source, part.path)
    for number, stage in enumerate(missing, total - len(missing) + 1):
        note(f"{number} of {total}: {_command(stage)}")
        _quietly([*stage.arguments, "--resume"])


def _scores(made: Experiment, missing: Sequence[Stage]) -> dict[Entry, Scores]:
    """The scores of every run that is there: those that were kept, or made now."""
    from tagi.repro.finding import checkpoint, keep_asked, kept_scores, place

    lacking = {stage.output for stage in missing}
    found: dict[Entry, Any] = {}
    for entry in dict.fromkeys(made.entries()):
        if any(stage.output in lacking for stage in entry.stages):
            continue
        if not checkpoint(entry).is_dir():
            note(f"{checkpoint(entry)}: was not kept by its run; what it scored is left out")
            continue
        found[entry] = kept_scores(entry)
        if found[entry] is None:
            if "--data" in entry.evaluation:
                _check_data(entry.evaluation[0], entry.evaluation[entry.evaluation.index("--data") + 1])
            note(f"scoring {checkpoint(entry)}")
            _quietly(["eval", *entry.evaluation, "--checkpoint", f"{checkpoint(entry)}", "-o", f"{place(entry)}"])
            keep_asked(entry)
            found[entry] = kept_scores(entry)
    return found


def _check_data(source: str, folder: str) -> None:
    if not Path(folder).is_dir():
        raise InputError(
            f"{folder}: is not there; `tagi data fetch {source} -o {folder}` gets it, or --data names the folder of all"
        )


def _quietly(arguments: Sequence[str]) -> None:
    """Run another command of this program; what it prints is not what was asked for here."""
    from tagi.cli.main import INTERRUPTED, app

    with contextlib.redirect_stdout(io.StringIO()):
        code = app(list(arguments), prog_name="tagi", standalone_mode=False)
    if code == INTERRUPTED:  # so typer says it
        raise KeyboardInterrupt


def _command(stage: Stage) -> str:
    return shlex.join(["tagi", *stage.arguments])


LABELS = {
    "Simple FT": "full_ft",
    "T0 / Tk-Instruct": "metatrain",
    "Hypter": "hypter",
    "HyperTuning": "hypertuning_lora",
    "HINT": "hint",
    "TAGI": "tagi",
}
"""The rows of Tables 1 and 8, and what our methods call them."""


def _methods(name: str) -> tuple[str, dict[str, Any]]:
    """Table 1 or 8, whose columns are computed from what our systems are: as Markdown, and for JSON."""
    from tagi import methods
    from tagi.cli.methods import TABLE_1, TABLE_8
    from tagi.eval.report import markdown_table
    from tagi.repro.paper import TABLE_8 as PAPER

    asked, places = TABLE_1 if name == "table1" else TABLE_8, list(TABLE_8)
    rows = [
        {
            "label": label,
            "paper": {column: PAPER[label][places.index(field)] for field, column in asked.items()},
            "ours": {column: int(getattr(methods.get(own), field)) for field, column in asked.items()},
        }
        for label, own in LABELS.items()
    ]
    header = ["", *(f"{whose}: {column}" for column in asked.values() for whose in ("paper", "ours"))]
    lines = [
        [row["label"], *("✓" * row[w][c] or "✗" for c in asked.values() for w in ("paper", "ours"))] for row in rows
    ]
    return f"# {name.replace('table', 'Table ')}\n\n{markdown_table(header, lines)}", {"name": name, "rows": rows}
