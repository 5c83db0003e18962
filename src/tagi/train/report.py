"""What a run tells while it trains: progress bar and `log.jsonl`."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tagi.files import append_line
from tagi.train.checkpoints import LOG


class Report:
    """The progress bar of one run, and its log; silent in all but the main process."""

    def __init__(self, steps: int, folder: Path, *, main: bool) -> None:
        self.folder, self.main = folder, main
        self.bar = _progress(visible=main)
        self.task = self.bar.add_task("training", total=steps, info="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, done: int, losses: Mapping[str, float], speed: float) -> None:
        """Move the bar."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.update(self.task, completed=done, info=f"{shown}  {speed:,.0f} tokens/s")

    def log(self, entry: Mapping[str, Any]) -> None:
        """Write one entry, which holds its step.

        Raises:
            DiskError: the log cannot be written.
        """
        if self.main:
            append_line(self.folder / LOG, json.dumps(dict(entry)))


def _progress(*, visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        console=Console(stderr=True),
        disable=not visible,
    )
