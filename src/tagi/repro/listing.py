"""The named runs as a table, for `tagi runs` and for docs/runs.md."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tagi.config import RunConfig
from tagi.repro.runs import RUNS, Run, named
from tagi.train.plan import Plan, chunked, plan

BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"
HEADERS = ("name", "stages", "backbone", "steps", "FLOPs", "memory")


@dataclass(frozen=True, slots=True)
class Row:
    """One named run in numbers, from its limits alone."""

    name: str
    stages: tuple[str, ...]
    backbone: str
    steps: tuple[int, ...]
    flops: float | None = None
    """None where costs were not counted."""
    memory: int | None = None
    """Of the stage that needs most."""

    def cells(self) -> tuple[str, ...]:
        """As text, one cell for each of `HEADERS`; without costs, of the first of them."""
        steps = " + ".join(f"{number:,}" for number in self.steps)
        shown = self.name, ", ".join(self.stages), self.backbone, steps
        if self.flops is None or self.memory is None:
            return shown
        return *shown, f"{self.flops:.1e}", gigabytes(self.memory)


def gigabytes(size: float) -> str:
    """Bytes as text."""
    return f"{size / 1e9:,.1f} GB"


def plans(run: Run, *, draw: bool = False) -> dict[str, Plan]:
    """Every stage's plan, each knowing those before it."""
    earlier: list[RunConfig] = []
    found: dict[str, Plan] = {}
    for stage, config in run.items():
        found[stage] = plan(config, earlier, draw=draw)
        earlier.append(config)
    return found


def row(name: str, *, costs: bool = True) -> Row:
    """One named run in numbers; to count its costs takes seconds."""
    run = named(name)
    backbone = run["pretrain"].backbone
    found = Row(
        name=name,
        stages=tuple(run),
        backbone=str(backbone.path if backbone else ""),
        steps=tuple(
            config.training.steps * (chunked(config)[2] if config.stage == "teachers" else 1) for config in run.values()
        ),
    )
    if not costs:
        return found
    counted = plans(run).values()
    return replace(found, flops=sum(one.flops for one in counted), memory=max(one.memory.total for one in counted))


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/runs.md."""
    lines = [HEADERS, tuple("---" for _ in HEADERS), *(one.cells() for one in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def refreshed(text: str) -> str:
    """A document with its table of runs made anew."""
    table = f"{BEGIN}\n{markdown([row(name) for name in RUNS])}\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(refreshed(document.read_text(encoding="utf-8")), encoding="utf-8")
