"""Comparisons as one picture: ratios as bars, or as lines where comparisons differ in the number of tasks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tagi.bench.timing import Comparison, shown
from tagi.files import atomic_file

WIDTH, BAR, LINES, AROUND = 9.0, 0.3, 3.6, 1.1
"""Inches: of the picture, of a bar, of a panel of lines, of a panel's title and axis."""
WIDE = 10.0
"""Largest ratio by smallest from which on the axis is logarithmic."""
BESIDE = 0.03
"""How far the lines of a panel stand from each other, so that one range does not hide another."""
Panel = Sequence[Comparison]


def draw(found: Sequence[Comparison], caption: str, file: Path) -> None:
    """Write a PNG or SVG, whole or not at all.

    Args:
        caption: how it was measured.

    Raises:
        DiskError: the file cannot be written.
    """
    chosen = panels(found)
    heights = [LINES if len(panel) > 1 else BAR * len(panel[0].timings) + AROUND for panel in chosen]
    figure = Figure(figsize=(WIDTH, sum(heights) + BAR), layout="constrained")
    axes = figure.subplots(len(chosen), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    colours = _colours(found)
    for panel, one in zip(chosen, axes, strict=True):
        if len(panel) > 1:
            _lines(panel, one, colours)
        else:
            _bars(panel[0], one)
    figure.supxlabel(caption, fontsize="small", color="dimgray")
    with atomic_file(file) as draft:
        figure.savefig(draft, format=file.suffix[1:].lower(), dpi=150)


def panels(found: Sequence[Comparison]) -> list[Panel]:
    """Comparisons of one series together, every other one by itself, in their order."""
    together: dict[str | int, list[Comparison]] = {}
    for number, one in enumerate(found):
        together.setdefault(number if one.series is None else one.series.name, []).append(one)
    return list(together.values())


def _colours(found: Sequence[Comparison]) -> dict[str, str]:
    """The same colour for a case in every panel of lines."""
    names = dict.fromkeys(timing.name for one in found if one.series is not None for timing in one.timings)
    return {name: f"C{number}" for number, name in enumerate(names)}


def _bars(one: Comparison, axes: Axes) -> None:
    points, places = _points(one), range(len(one.timings))
    ratios = [point.ratio for point in points]
    colours = ["lightgray" if number == 0 else "tab:blue" for number in places]
    if _stretched(axes.set_xscale, ratios):  # bars would have no beginning
        axes.scatter(ratios, places, color=colours, zorder=3)
    else:
        axes.barh(places, ratios, color=colours, height=0.65)
    axes.errorbar(ratios, places, xerr=_ranges(points), fmt="none", ecolor="black", capsize=3)
    axes.set_yticks(places, [f"{point.name}  {shown(point.ratio)}" for point in points])
    axes.invert_yaxis()
    axes.axvline(1.0, color="gray", linewidth=0.8)
    axes.set_title(one.title, loc="left", fontsize="medium")
    axes.set_xlabel(_label(one), fontsize="small")
    _plain(axes.xaxis)


def _lines(panel: Panel, axes: Axes, colours: Mapping[str, str]) -> None:
    drawn = [(place, point) for place, one in enumerate(panel) for point in _points(one)]
    if not _stretched(axes.set_yscale, [point.ratio for _, point in drawn]):
        axes.set_ylim(0.0, 1.05 * max(point.high for _, point in drawn))
    names = list(dict.fromkeys(point.name for _, point in drawn))
    for number, name in enumerate(names):
        aside = BESIDE * (number - (len(names) - 1) / 2)
        places = [place + aside for place, point in drawn if point.name == name]
        points = [point for _, point in drawn if point.name == name]
        style = {"marker": "o", "markersize": 4, "capsize": 3, "color": colours[name], "label": name}
        axes.errorbar(places, [point.ratio for point in points], _ranges(points), **style)
    series = [one.series for one in panel if one.series is not None]
    axes.set_xticks(range(len(panel)), [f"{one.tasks:,}" for one in series])
    axes.set_xlabel("tasks", fontsize="small")
    axes.set_ylabel(_label(panel[0]).replace(": ", ":\n"), fontsize="small")
    axes.set_title(series[0].name, loc="left", fontsize="medium")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
    _plain(axes.yaxis)


class _Point(NamedTuple):
    name: str
    ratio: float
    low: float
    high: float


def _points(one: Comparison) -> list[_Point]:
    each = [(timing.name, one.ratios(number)) for number, timing in enumerate(one.timings)]
    return [_Point(name, median(ratios), min(ratios), max(ratios)) for name, ratios in each]


def _ranges(points: Sequence[_Point]) -> list[list[float]]:
    """How far the range reaches below and above each ratio."""
    return [[point.ratio - point.low for point in points], [point.high - point.ratio for point in points]]


def _stretched(set_scale: Callable[[str], None], ratios: Sequence[float]) -> bool:
    """Make an axis logarithmic if the ratios need it; says whether."""
    if needed := max(ratios) / min(ratios) > WIDE:
        set_scale("log")
    return needed


def _plain(axis: Axis) -> None:
    """Ratios as numbers, not as powers of ten."""
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _label(one: Comparison) -> str:
    return f"time / time of “{one.timings[0].name}”: median and range of the rounds"
