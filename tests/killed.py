"""A tiny training in a process of its own, for tests that kill it; it can stop at chosen moments to be killed there."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file

from tagi import files
from tagi.config import RunConfig
from tagi.train import checkpoints
from tagi.train.build import build_stage
from tagi.train.trainer import train
from training_runs import config

MOMENTS = ("weights", "half a file", "evaluation", "before a rename", "after a rename", "log", "removal", "batch")
STEPS = 16


@dataclass(frozen=True)
class Hang:
    """Where the process stops for good: at the `count`-th time that it comes to a moment."""

    moment: str
    count: int
    marker: Path


def settings(folder: Path) -> RunConfig:
    """A run of 16 steps with dropout, eight checkpoints and a changing best."""
    shape = config(folder).backbone
    assert shape is not None and shape.shape is not None
    values: dict[str, Any] = {"training__steps": STEPS, "training__checkpoint_every": 2, "data__compositions": 4}
    dropped = shape.shape.model_dump() | {"dropout_rate": 0.1}
    return config(folder, backbone__shape=dropped, **values)


def score(folder: Path) -> dict[str, float]:
    """Goes up and down with the weights, so that some checkpoints are the best so far and some are not."""
    value = float(torch.cat([t.flatten() for t in load_file(folder / "model.safetensors").values()]).sum())
    return {"valid_rouge_l": value * 1e4 % 1.0}


def work(folder: Path, hang: Hang | None, pause: float) -> None:
    """Train, going on from the newest checkpoint; every batch takes `pause` seconds longer than it must."""
    torch.set_num_threads(1)
    left = {hang.moment: hang.count} if hang is not None else {}

    def reach(moment: str) -> None:
        if moment in left:
            left[moment] -= 1
            if left[moment] == 0:
                _stop(hang)

    run = settings(folder)
    stage = build_stage(run)
    write, batch = stage.write, stage.batch

    def slow_batch(index: int) -> Any:
        time.sleep(pause)
        reach("batch")
        return batch(index)

    def watched_write(draft: Path) -> None:
        write(draft)
        time.sleep(pause)
        reach("weights")
        if left.get("half a file") == 1:
            whole = (draft / "model.safetensors").read_bytes()
            (draft / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        reach("half a file")

    def watched_score(draft: Path) -> dict[str, float]:
        reach("evaluation")
        return score(draft)

    _watch_files(reach)
    train(
        replace(stage, write=watched_write, batch=slow_batch),
        run.training,
        folder,
        resume=True,
        evaluate=watched_score,
    )


def _watch_files(reach: Callable[[str], None]) -> None:
    """Stop before and after renames, after a log line, and inside the removal of an old checkpoint."""
    from tagi.train import trainer

    rename, append, remove = os.replace, files.append_line, checkpoints.shutil.rmtree

    def watched_rename(source: Any, target: Any) -> None:
        reach("before a rename")
        rename(source, target)
        reach("after a rename")

    def watched_append(target: Path, line: str) -> None:
        append(target, line)
        reach("log")

    def watched_remove(path: Any, **options: Any) -> None:
        if Path(path).name.startswith(".step-") and (Path(path) / checkpoints.STATE).exists():
            (Path(path) / checkpoints.STATE).unlink()
            reach("removal")
        remove(path, **options)

    files.os.replace = watched_rename  # type: ignore[assignment]
    trainer.append_line = watched_append
    checkpoints.shutil.rmtree = watched_remove  # type: ignore[assignment]


def _stop(hang: Hang | None) -> NoReturn:
    assert hang is not None
    hang.marker.touch()
    while True:
        time.sleep(1)
