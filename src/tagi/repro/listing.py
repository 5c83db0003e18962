"""The named runs as a table, for `tagi runs` and for docs/runs.md."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagi.config import RunConfig
from tagi.repro.runs import RUNS, Run, named
from tagi.train.plan import Plan, plan

BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"
HEADERS = ("name", "stages", "backbone", "steps", "FLOPs", "memory")


@dataclass(frozen=True, slots=True)
class Row:
    """One named run in numbers, from its limits alone."""

    name: str
    stages: tuple[str, ...]
    backbone: str
    steps: tuple[int, ...]
    flops: float
    memory: int
    """Of the stage that needs most."""

    def cells(self) -> tuple[str, ...]:
        """As text, one cell for each of `HEADERS`."""
        steps = " + ".join(f"{number:,}" for number in self.steps)
        return self.name, ", ".join(self.stages), self.backbone, steps, f"{self.flops:.1e}", gigabytes(self.memory)


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


def row(name: str) -> Row:
    """One named run in numbers."""
    run = named(name)
    found = plans(run)
    backbone = run["pretrain"].backbone
    return Row(
        name=name,
        stages=tuple(run),
        backbone=str(backbone.path if backbone else ""),
        steps=tuple(one.steps for one in found.values()),
        flops=sum(one.flops for one in found.values()),
        memory=max(one.memory.total for one in found.values()),
    )


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
