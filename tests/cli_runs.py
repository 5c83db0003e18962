"""Runs of the command line that its tests share: a tiny config, a command's result, what a mistake looks like."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tagi.cli.main import main

INSTRUCTION = "Keep only the animals, then reverse the list."
CONFIG = {
    "stage": "finetune",
    "method": "tagi",
    "backbone": {
        "tokenizer": "micro",
        "shape": {
            "vocab_size": 8, "d_model": 16, "d_kv": 4, "d_ff": 16,
            "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
        },
    },
    "hypernetwork": {"rank": 2, "hidden": 4},
    "fusion": {"width": 4, "heads": 2},
    "prompt": {"style": "plain", "demonstrations": 1, "max_instruction": 32, "max_input": 16, "max_target": 8},
    "data": {"source": "micro", "compositions": 20},
    "training": {
        "steps": 4, "tasks_per_batch": 2, "rows_per_task": 2, "lr": 0.03, "checkpoint_every": 2,
        "trainable": ["backbone", "hypernetwork", "fusion"],
    },
}  # fmt: skip


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which must be one JSON object."""
        return json.loads(self.out)


Run = Callable[..., Result]


def write_config(folder: Path, **changes: Any) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(CONFIG | {"output": str(folder / "runs")} | changes), encoding="utf-8")
    return file


def trained(folder: Path, **changes: Any) -> Path:
    config = write_config(folder, **changes)
    assert main(["train", {**CONFIG, **changes}["stage"], "--config", str(config)]) == 0
    return folder / "runs" / "final"


def mistake(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, one sentence on stderr that holds every word."""
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert [word for word in words if word not in result.err] == [], result.err
