"""What a run tells while it trains: progress bar, `log.jsonl`, and the trackers."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tagi.config import TrainingConfig
from tagi.errors import ConfigError
from tagi.files import append_line
from tagi.train.checkpoints import LOG

PROJECT = "tagi"
TRACKING = "tracking"
"""Folder of the trackers' files, inside the run's."""


class Report:
    """The progress bar of one run, and the two places where its entries go; silent in all but the main process."""

    def __init__(self, config: TrainingConfig, folder: Path, accelerator: Accelerator, *, main: bool) -> None:
        self.folder, self.accelerator, self.main = folder, accelerator, main
        self.tracked = bool(config.trackers)
        self.bar = _progress(visible=main)
        self.task = self.bar.add_task("training", total=config.steps, info="")
        if self.tracked:
            values = {k: v for k, v in config.model_dump(mode="json").items() if isinstance(v, (int, float, str))}
            accelerator.init_trackers(PROJECT, config=values)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.tracked:
            self.accelerator.end_training()

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
        if self.tracked:
            self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ConfigError: names the package and how to get it.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"training.trackers: {name} is not installed; pip install 'tagi[tracking]' brings it")


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
