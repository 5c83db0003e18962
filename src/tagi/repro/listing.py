"""The named runs as a table, for `tagi runs` and for docs/runs.md."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tagi.repro.runs import RUNS, named
from tagi.train.plan import chunked, plan

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
        return *shown, f"{self.flops:.1e}", f"{self.memory / 1e9:,.1f} GB"


def row(name: str, *, costs: bool = True) -> Row:
    """One named run in numbers; to count its costs takes seconds."""
    run = named(name)
    configs, backbone = list(run.values()), run["pretrain"].backbone
    steps = [one.training.steps * (chunked(one)[2] if one.stage == "teachers" else 1) for one in configs]
    found = Row(name, tuple(run), str(backbone.path if backbone else ""), tuple(steps))
    if not costs:
        return found
    counted = [plan(config, configs[:number], draw=False) for number, config in enumerate(configs)]
    return replace(found, flops=sum(one.flops for one in counted), memory=max(one.memory.total for one in counted))


def refreshed(text: str) -> str:
    """A document with its table of runs made anew."""
    lines = [HEADERS, tuple("---" for _ in HEADERS), *(row(name).cells() for name in RUNS)]
    table = "\n".join([BEGIN, *(f"| {' | '.join(line)} |" for line in lines), END])
    return re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(refreshed(document.read_text(encoding="utf-8")), encoding="utf-8")
