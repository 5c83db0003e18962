"""Figures of finished runs, as SVG and PNG."""

from pathlib import Path

from tagi.files import atomic_file
from tagi.repro.experiments import Experiment, Panel
from tagi.repro.tables import Scored, points


def draw(made: Experiment, scored: Scored, folder: Path, name: str) -> list[Path]:
    """Write a figure twice; points that are missing are left out. Gives the files.

    Raises:
        DiskError: they cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [part for part in made.parts if isinstance(part, Panel)]
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")  # no pyplot: it keeps what it draws
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in panel.lines:
            there = [(x, y) for x, y in points(line.x, line.points, panel, scored) if y is not None]
            values, ends = [100 * y.mean for _, y in there], [y.interval or (y.mean, y.mean) for _, y in there]
            spread = [[max(0.0, v - 100 * e[0]) for v, e in zip(values, ends, strict=True)]]
            spread.append([max(0.0, 100 * e[1] - v) for v, e in zip(values, ends, strict=True)])
            axes.errorbar([x for x, _ in there], values, yerr=spread, marker="o", capsize=3, label=line.label)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=f"{panel.metric.replace('_', ' ')}, %")
        axes.set_xticks(sorted({x for line in panel.lines for x in line.x}))
        axes.legend()
    files = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for file in files:
        with atomic_file(file) as draft:
            figure.savefig(draft, format=file.suffix[1:], dpi=150)
    return files
