"""Scores of finished runs as tables: means over seeds, intervals over tasks, beside what the paper prints."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypedDict

import numpy as np

from tagi.eval.rank import ANLI
from tagi.eval.report import bootstrap, markdown_table
from tagi.repro.experiments import Block, Cell, Entry, Experiment, Panel

Scores = Mapping[str, Any]
"""What `tagi eval --json` prints."""
Scored = Mapping[Entry, Scores]
"""The scores of the runs that are there."""
DASH = "–"


class Score(TypedDict):
    """One of our numbers, as fractions."""

    score: float
    """The mean over seeds."""
    seeds: list[float]
    interval: list[float] | None
    """95 % bootstrap over tasks; None for a single task's score."""


def value(scores: Scores, metric: str) -> float | None:
    """A number of an evaluation: a headline, `anli`, `by_category.NAME`, or a task; None where it is not there."""
    if metric in ("exact_match", "rouge_l", "mtest11", "hypert5"):
        return scores.get(metric)
    if metric.startswith("by_category."):
        found = scores["by_category"].get(metric.partition(".")[2])
        return None if found is None else found["exact_match"]
    of_task = scores["by_task"]
    if metric == "anli":
        return fmean(of_task[name] for name in ANLI) if of_task.keys() >= set(ANLI) else None
    return of_task.get(metric)


def score(cell: Cell, metric: str, scored: Scored) -> Score | None:
    """A cell's number over those seeds that are there; None where there are none."""
    found = [scored[entry] for entry in cell if entry in scored]
    values = [number for scores in found if (number := value(scores, metric)) is not None]
    return {"score": fmean(values), "seeds": values, "interval": _interval(found, metric)} if values else None


def _interval(found: Sequence[Scores], metric: str) -> list[float] | None:
    """Over tasks, each with its mean over seeds and as many rows as it has."""
    if metric not in ("exact_match", "rouge_l", "mtest11"):
        return None
    names = [name for name in found[0]["by_task"] if all(name in scores["by_task"] for scores in found)]
    if len(names) < 2:
        return None
    if metric == "mtest11":
        means, rows = [fmean(scores["by_task"][name] for scores in found) for name in names], [1] * len(names)
    else:
        means = [fmean(scores["by_task"][name][metric] for scores in found) for name in names]
        rows = [found[0]["by_task"][name]["n"] for name in names]
    drawn = bootstrap(np.repeat(means, rows), np.repeat(names, rows).tolist(), seed=0)
    return [drawn.low, drawn.high]


def as_json(made: Experiment, scored: Scored) -> dict[str, Any]:
    """Every number of a table or figure: the paper's in percent as printed, ours as fractions."""
    parts = [_block(part, scored) if isinstance(part, Block) else _panel(part, scored) for part in made.parts]
    return {"title": made.title, "notes": list(made.notes), "parts": parts}


def _block(block: Block, scored: Scored) -> dict[str, Any]:
    rows = [
        {
            "label": row.label,
            "paper": dict(zip(block.paper_columns, row.paper, strict=True)),
            "ours": {
                name: score(cell, metric, scored)
                for name, cell, metric in zip(block.columns, row.ours, row.metric, strict=True)
            },
        }
        for row in block.rows
    ]
    return {"title": block.title, "rows": rows}


def _panel(panel: Panel, scored: Scored) -> dict[str, Any]:
    lines = [
        {
            "label": line.label,
            "points": [{"x": x, "ours": score(cell, panel.metric, scored)} for x, cell in line.points],
        }
        for line in panel.lines
    ]
    return {"title": panel.title, "x": panel.x_label, "metric": panel.metric, "lines": lines}


def markdown(values: Mapping[str, Any], missing: Sequence[str]) -> str:
    """What `as_json` gives, and its scale, as a document with what is missing and how to get it."""
    texts = [f"# {values['title']}, scale {values['scale']}"]
    for part in values["parts"]:
        texts += [f"## {part['title']}", _block_table(part["rows"]) if "rows" in part else _panel_table(part)]
    said = "Ours are percentages, means over seeds; in brackets 95 % bootstrap intervals over tasks."
    texts.append("\n".join(f"- {note}" for note in (said, f"{DASH}: not reported, or not run.", *values["notes"])))
    if missing:
        texts.append("## Missing\n\nAll of it: the same command with `--run`. One by one, in this order:")
        texts.append("```sh\n" + "\n".join(missing) + "\n```")
    return "\n\n".join(text.rstrip("\n") for text in texts) + "\n"


def _block_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["", *(f"{whose}: {name}" for whose in ("paper", "ours") for name in rows[0][whose])]
    lines: list[list[str]] = []
    for row in rows:
        printed = [DASH if number is None else f"{number:g}" for number in row["paper"].values()]
        lines.append([row["label"], *printed, *map(_text, row["ours"].values())])
    return markdown_table(header, lines)


def _panel_table(panel: Mapping[str, Any]) -> str:
    each = [(line["label"], point) for line in panel["lines"] for point in line["points"]]
    rows = [[label, f"{point['x']:,}", _text(point["ours"])] for label, point in each]
    return markdown_table(["", panel["x"], f"ours: {panel['metric']}"], rows)


def _text(one: Score | None) -> str:
    if one is None:
        return DASH
    shown = f"{100 * one['score']:.1f}"
    return shown if one["interval"] is None else f"{shown} [{', '.join(f'{100 * end:.1f}' for end in one['interval'])}]"
