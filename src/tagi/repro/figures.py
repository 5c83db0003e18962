"""Figures of finished runs, as SVG and PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagi.files import atomic_file


def draw(panels: Sequence[Mapping[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write the panels of `tables.as_json` as SVG and PNG, without the points that are missing; see `atomic_file`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")  # no pyplot: it keeps what it draws
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in panel["lines"]:
            there = [(point["x"], point["ours"]) for point in line["points"] if point["ours"] is not None]
            values = [100 * y["score"] for _, y in there]
            ends = [y["interval"] or (y["score"], y["score"]) for _, y in there]
            below = [max(0.0, value - 100 * low) for value, (low, _) in zip(values, ends, strict=True)]
            above = [max(0.0, 100 * high - value) for value, (_, high) in zip(values, ends, strict=True)]
            x = [x for x, _ in there]
            axes.errorbar(x, values, yerr=[below, above], marker="o", capsize=3, label=line["label"])
        axes.set(title=panel["title"], xlabel=panel["x"], ylabel=f"{panel['metric'].replace('_', ' ')}, %")
        axes.set_xticks(sorted({point["x"] for line in panel["lines"] for point in line["points"]}))
        axes.legend()
    files = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for file in files:
        with atomic_file(file) as draft:
            figure.savefig(draft, format=file.suffix[1:], dpi=150)
    return files
