"""How long a training step takes on this machine: a few are taken, and nothing is written."""

import os
import time
from pathlib import Path
from statistics import median

import torch

from tagi.config import RunConfig
from tagi.data.sources import Sources
from tagi.train import optim
from tagi.train.build import build_stage
from tagi.train.measure import is_checkpoint
from tagi.train.plan import Plan

TIMED = 2
"""Steps that are timed, after one that warms up."""


def can_be_timed(config: RunConfig, plan: Plan) -> bool:
    """Whether data and weights lie here, and fit twice into the machine's memory."""
    teacher = config.objective.teacher
    folders = [config.bank, teacher.checkpoint if teacher is not None else None]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        config.stage in ("metatrain", "pretrain", "finetune")
        and plan.tokens_are == "measured"
        and (config.start_from is None or is_checkpoint(config.start_from))
        and all(one is None or Path(one).is_dir() for one in folders)
        and 2 * plan.memory.total < memory
    )


def seconds_per_step(config: RunConfig, sources: Sources) -> float:
    """Of forward and backward passes of the run's first batches in one process, without the optimizer.

    Raises:
        TagiError: whatever does not fit, see `build_stage`.
    """
    stage = build_stage(config, sources)
    torch.manual_seed(config.training.seed)
    optim.freeze(stage.model, stage.parts)
    if config.training.precision == "bf16":
        stage.model.to(torch.bfloat16)
    stage.model.train()
    each, seconds = config.training.accumulation, list[float]()
    for step in range(1 + TIMED):
        began = time.perf_counter()
        for number in range(step * each, (step + 1) * each):
            terms = stage.loss(stage.model, stage.batch(number))
            torch.stack([stage.weights[name] * term.total for name, term in terms.items()]).sum().backward()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
