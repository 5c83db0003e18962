"""A tiny training that one process or several run, started by torchrun: shared_work.py FOLDER CHANGES_AS_JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tagi.train.build import build_stage
from tagi.train.trainer import train
from training_runs import config


def score(folder: Path) -> dict[str, float]:
    """A score that depends on the weights; written down, so that a test can count who evaluated."""
    note(folder.parent.parent / "evaluated", "x")
    values = load_file(folder / "model.safetensors").values()
    return {"valid_rouge_l": float(sum(t.double().abs().sum() for t in values))}


def note(file: Path, text: str) -> None:
    """Add to a file that all processes share."""
    with file.open("a") as opened:
        opened.write(text)


def main(folder: Path, changes: dict[str, Any]) -> None:
    """Train, going on from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    settings = config(folder, **changes)
    stage = build_stage(settings)
    train(stage, settings.training, folder, resume=True, evaluate=score)
    if any(isinstance(parameter, DTensor) for parameter in stage.model.parameters()):
        note(folder.parent / "sharded", "x")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
