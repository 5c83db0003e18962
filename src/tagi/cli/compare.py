"""`tagi eval compare`: two systems on the same examples, over one or more seeds, with a paired interval."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagi.cli.common import Json, note, print_json, stdout, table
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.eval.evaluate import Evaluation

EXAMPLE = (
    "Example: tagi eval compare --ours scores/tagi-0 --ours scores/tagi-1 --theirs scores/meta-0 --theirs scores/meta-1"
)
Folders = list[Path]


def compare(
    ours: Annotated[Folders, typer.Option(metavar="DIR", help="A folder that `tagi eval -o` wrote; one a seed.")],
    theirs: Annotated[Folders, typer.Option(metavar="DIR", help="The other system's folder of the same seed.")],
    metric: Annotated[Literal["exact_match", "rouge_l"], typer.Option(help="What is compared.")] = "exact_match",
    as_json: Json = False,
) -> None:
    """Compare two systems example by example: difference, 95 % interval over tasks, verdict."""
    from tagi.cli.scores import percent, with_interval
    from tagi.eval.report import bootstrap, verdict

    if len(ours) != len(theirs):
        raise InputError(f"--ours names {len(ours)} folders and --theirs {len(theirs)}; they are compared in pairs")
    pairs = [_pair(one, other) for one, other in zip(ours, theirs, strict=True)]
    a = [value for one, _ in pairs for value in getattr(one, metric)]
    b = [value for _, other in pairs for value in getattr(other, metric)]
    tasks = [task for one, _ in pairs for task in one.tasks]
    paired = [own - other for own, other in zip(a, b, strict=True)]
    difference = bootstrap(paired, tasks, seed=0) if len(set(tasks)) > 1 else None
    if difference is None:
        note("both hold a single task: an interval over tasks needs two at least, so that there is none")
    result: dict[str, Any] = {
        "metric": metric,
        "difference": fmean(a) - fmean(b),
        "interval": None if difference is None else [difference.low, difference.high],
        "verdict": "unresolved" if difference is None else verdict(difference),
        "ours": fmean(a),
        "theirs": fmean(b),
        "by_pair": [[fmean(getattr(one, metric)), fmean(getattr(other, metric))] for one, other in pairs],
        "n": len(a),
        "tasks": len(set(tasks)),
    }
    if as_json:
        print_json(result)
        return
    shown = table(f"{metric}, {result['tasks']} tasks, {len(a):,} pairs", ("", "ours", "theirs"))
    for name, scores in zip(ours, result["by_pair"], strict=True):
        shown.add_row(str(name), *map(percent, scores))
    shown.add_row("all", percent(result["ours"]), percent(result["theirs"]), style="bold")
    shown.add_row("difference", with_interval(result["difference"], result["interval"]), result["verdict"])
    stdout().print(shown)


def _pair(ours: Path, theirs: Path) -> tuple[Evaluation, Evaluation]:
    """Two evaluations, of the same examples or an `InputError`."""
    from tagi.eval.evaluate import score
    from tagi.eval.report import read_predictions

    one, other = (read_predictions(folder / "predictions.jsonl") for folder in (ours, theirs))
    if not one and not other:
        raise InputError(f"{ours} and {theirs} hold no predictions to compare")
    if [(p.task, p.example) for p in one] != [(p.task, p.example) for p in other]:
        raise InputError(f"{ours} and {theirs} do not hold the same examples in the same order")
    return score(one), score(other)
