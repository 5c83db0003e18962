"""Tiny trainings that several test files share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tagi.config import RunConfig
from tagi.config.files import parse
from tagi.data.sources import Sources
from tagi.train.build import build_stage
from tagi.train.trainer import train

SHAPE = {
    "vocab_size": 8,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}

DECODER = {
    "vocab_size": 8,
    "d_model": 16,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "max_positions": 512,
    "rotary": {},
}
BACKBONES = {
    "t5": {"shape": SHAPE, "tokenizer": "micro"},
    "decoder": {"decoder": DECODER, "tokenizer": "micro"},
}
"""Tiny language models of either family, from random initialisation."""
BOTH = pytest.mark.parametrize("family", BACKBONES)
SHORT = {"max_instruction": 200, "max_input": 200, "max_target": 64}
"""Limits of texts that fit into the decoder's positions; none of the toy tasks comes near them."""


def config(output: Path, family: str = "t5", **changes: Any) -> RunConfig:
    """A run of seconds on microtasks; `section__key=value` changes a nested field."""
    values: dict[str, Any] = {
        "stage": "finetune",
        "method": "tagi",
        "backbone": BACKBONES[family],
        "hypernetwork": {"rank": 2, "hidden": 4},
        "fusion": {"width": 4, "heads": 2},
        "prompt": {"style": "plain"} | SHORT,
        "data": {"source": "micro", "compositions": 20, "valid_tasks": 2},
        "training": {
            "steps": 6, "tasks_per_batch": 3, "rows_per_task": 2, "lr": 3e-3, "checkpoint_every": 2,
            "trainable": ["backbone", "hypernetwork", "fusion"],
        },
        "output": str(output),
    }  # fmt: skip
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = values
        for section in sections:
            place[section] = dict(place[section])  # what is shared with other configs stays as it is
            place = place[section]
        place[last] = value
    return parse(RunConfig, values, source="test")


def run(settings: RunConfig, sources: Sources | None = None, **options: Any) -> Path:
    return train(build_stage(settings, sources), settings.training, Path(settings.output), **options)


def in_two_processes(*work: object, **environment: str) -> None:
    """Run something under torchrun, on CPU, one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run([*launch, *map(str, work)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        str(f.relative_to(folder)) + name: t for f in folder.rglob("*.safetensors") for name, t in load_file(f).items()
    }


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["ce"]) for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]


def logged(folder: Path) -> list[dict[str, Any]]:
    """Every entry of a run's log but its speed, which no two runs share."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


def furthest(one: Path, other: Path) -> float:
    """Largest absolute difference between the tensors of two checkpoints that hold the same names."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
