"""Where the comparisons of a benchmark go: a table or one JSON object, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagi.cli.common import print_json, stdout, table
from tagi.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.bench.timing import Comparison

PICTURES = (".png", ".svg")
COMPARED_WITH = ("torch", "transformers", "peft")

JsonFile = Annotated[
    Path | None, typer.Option("--json-file", metavar="FILE", help="Write every round, and how it was measured, here.")
]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the ratios and their range, .png or .svg.")
]


@dataclass(frozen=True, slots=True)
class Output:
    """What was asked of a benchmark, and where its results go."""

    command: str
    arguments: Mapping[str, Any]
    dtype: str
    json_file: Path | None
    plot: Path | None
    as_json: bool

    def show(self, found: Sequence[Comparison], tables: Sequence[Table] = (), **more: Any) -> None:
        """Print comparisons and whatever else was found, then write the files.

        Args:
            tables: what is found beside the comparisons, for people.
            more: the same as plain values, for the JSON object.

        Raises:
            DiskError: a file cannot be written.
        """
        result = self._result(found) | more
        if self.as_json:
            print_json(result)
        else:
            for one in (*map(_table, found), *tables):
                stdout().print(one)
        if self.json_file is not None:
            self._write_json(self.json_file, result)
        if self.plot is not None:
            self._draw(self.plot, found, result["measured"])

    def _result(self, found: Sequence[Comparison]) -> dict[str, Any]:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in self.arguments.items()}
        comparisons = [one.as_json() for one in found]
        return {
            "command": self.command,
            "arguments": asked,
            "measured": _measured(self.dtype),
            "comparisons": comparisons,
        }

    def _write_json(self, file: Path, result: Mapping[str, Any]) -> None:
        from tagi.files import write_text

        write_text(file, json.dumps(result, indent=1))

    def _draw(self, file: Path, found: Sequence[Comparison], measured: Mapping[str, Any]) -> None:
        from tagi.bench.plot import draw

        parts = (
            f"{self.command}, {self.arguments['shape']}, {self.dtype}",
            f"threads: {measured['threads']}, torch {measured['versions']['torch']}, {measured['date']}",
        )
        draw(found, "\n".join(parts), file)


def output(
    context: typer.Context, json_file: Path | None, plot: Path | None, as_json: bool, dtype: str = "fp32"
) -> Output:
    """Where the results of the running command go; asked before anything is measured.

    Raises:
        InputError: a picture of a kind that we do not draw.
        DiskError: a file that cannot be written.
    """
    from tagi.files import check_writable

    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise InputError(f"{plot}: a plot ends in {' or '.join(PICTURES)}")
    for file in (json_file, plot):
        if file is not None:
            check_writable(file)
    return Output(context.command_path, context.params, dtype, json_file, plot, as_json)


def _measured(dtype: str) -> dict[str, Any]:
    """The circumstances that a ratio depends on."""
    from datetime import date
    from importlib import metadata, util

    import torch

    return {
        "date": date.today().isoformat(),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: metadata.version(name) for name in COMPARED_WITH if util.find_spec(name) is not None},
    }


def _table(comparison: Comparison) -> Table:
    from tagi.bench.timing import shown

    speed = comparison.answers is not None
    made = table(comparison.title, ("", "median ms", "ratio", "range", *(["answers/s"] if speed else ())))
    for case in comparison.as_json()["cases"]:
        low, high = case["ratio_range"]
        cells = [f"{case['median_s'] * 1000:,.1f}", shown(case["ratio"]), f"{shown(low)}-{shown(high)}"]
        made.add_row(case["name"], *cells, *([f"{case['answers_per_second']:,.1f}"] if speed else ()))
    return made
