"""Scores of finished runs as tables: means over seeds, intervals over tasks, beside what the paper prints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tagi.eval.report import bootstrap, markdown_table
from tagi.repro.experiments import Block, Cell, Entry, Experiment, Panel

Scores = Mapping[str, Any]
"""What `tagi eval --json` prints."""
Scored = Callable[[Entry], Scores | None]
"""The scores of a run; None where it is missing."""
DASH = "–"
_ANLI = ("anli-r1", "anli-r2", "anli-r3")


@dataclass(frozen=True, slots=True)
class Score:
    """One of our numbers, as fractions."""

    mean: float
    """Over seeds."""
    seeds: tuple[float, ...]
    interval: tuple[float, float] | None
    """95 % bootstrap over tasks; None for a single task's score."""

    @property
    def text(self) -> str:
        shown = f"{100 * self.mean:.1f}"
        if self.interval is None:
            return shown
        return f"{shown} [{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]"


def value(scores: Scores, metric: str) -> float | None:
    """A number of an evaluation: a headline, `anli`, `by_category.NAME`, or a task; None where it is not there."""
    if metric in ("exact_match", "rouge_l", "mtest11", "hypert5"):
        return scores.get(metric)
    if metric.startswith("by_category."):
        found = scores["by_category"].get(metric.partition(".")[2])
        return None if found is None else found["exact_match"]
    of_task = scores["by_task"]
    if metric == "anli":
        return fmean(of_task[name] for name in _ANLI) if of_task.keys() >= set(_ANLI) else None
    return of_task.get(metric)


def score(cell: Cell, metric: str, scored: Scored) -> Score | None:
    """A cell's number over those seeds that are there; None where there are none."""
    found = [scores for entry in cell if (scores := scored(entry)) is not None]
    values = [number for scores in found if (number := value(scores, metric)) is not None]
    if not values:
        return None
    return Score(fmean(values), tuple(values), _interval(found, metric))


def _interval(found: Sequence[Scores], metric: str) -> tuple[float, float] | None:
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
    return drawn.low, drawn.high


def as_json(made: Experiment, scored: Scored) -> dict[str, Any]:
    """Every number of a table or figure: the paper's in percent as printed, ours as fractions."""
    parts = [_block(part, scored) if isinstance(part, Block) else _panel(part, scored) for part in made.parts]
    return {"title": made.title, "notes": list(made.notes), "parts": parts}


def _block(block: Block, scored: Scored) -> dict[str, Any]:
    rows = []
    for row in block.rows:
        ours = [score(cell, metric, scored) for cell, metric in zip(row.ours, row.metric, strict=True)]
        rows.append(
            {
                "label": row.label,
                "paper": dict(zip(block.paper_columns, row.paper, strict=True)),
                "ours": {name: _plain(one) for name, one in zip(block.columns, ours, strict=True)},
            }
        )
    return {"title": block.title, "rows": rows}


def _panel(panel: Panel, scored: Scored) -> dict[str, Any]:
    lines = [
        {
            "label": line.label,
            "points": [{"x": x, "ours": _plain(y)} for x, y in points(line.x, line.points, panel, scored)],
        }
        for line in panel.lines
    ]
    return {"title": panel.title, "x": panel.x_label, "metric": panel.metric, "lines": lines}


def points(x: Sequence[int], cells: Sequence[Cell], panel: Panel, scored: Scored) -> list[tuple[int, Score | None]]:
    """A line's points."""
    return [(place, score(cell, panel.metric, scored)) for place, cell in zip(x, cells, strict=True)]


def _plain(one: Score | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "score": one.mean,
        "seeds": list(one.seeds),
        "interval": None if one.interval is None else list(one.interval),
    }


def markdown(made: Experiment, scored: Scored, scale: str, missing: Sequence[str]) -> str:
    """The document, with what is missing and how to get it."""
    texts = [f"# {made.title}, scale {scale}"]
    for part in made.parts:
        texts.append(f"## {part.title}")
        texts.append(_block_table(part, scored) if isinstance(part, Block) else _panel_table(part, scored))
    said = "Ours are percentages, means over seeds; in brackets 95 % bootstrap intervals over tasks."
    texts.append("\n".join(f"- {note}" for note in (said, f"{DASH}: not reported, or not run.", *made.notes)))
    if missing:
        texts.append("## Missing\n\nAll of it: the same command with `--run`. One by one, in this order:")
        texts.append("```sh\n" + "\n".join(missing) + "\n```")
    return "\n\n".join(text.rstrip("\n") for text in texts) + "\n"


def _block_table(block: Block, scored: Scored) -> str:
    header = ["", *(f"paper: {name}" for name in block.paper_columns), *(f"ours: {name}" for name in block.columns)]
    rows = []
    for row in block.rows:
        printed = [DASH if number is None else f"{number:g}" for number in row.paper]
        ours = [score(cell, metric, scored) for cell, metric in zip(row.ours, row.metric, strict=True)]
        rows.append([row.label, *printed, *(DASH if one is None else one.text for one in ours)])
    return markdown_table(header, rows)


def _panel_table(panel: Panel, scored: Scored) -> str:
    rows = []
    for line in panel.lines:
        for x, one in points(line.x, line.points, panel, scored):
            rows.append([line.label, f"{x:,}", DASH if one is None else one.text])
    return markdown_table(["", panel.x_label, f"ours: {panel.metric}"], rows)
