"""The processes that share one training: who they are, what they add up, how the model is wrapped for them."""

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tagi.config import TrainingConfig
from tagi.errors import ConfigError
from tagi.model.tagi import TagiModel

PATIENCE = timedelta(hours=12)
"""How long the other processes wait while the main one evaluates."""


@dataclass(frozen=True, slots=True)
class Team:
    """One process's view of all that train one model; a bank's models in lock-step are trained by each one alone."""

    accelerator: Accelerator
    alone: bool

    @property
    def size(self) -> int:
        """How many processes share the batches of a step."""
        return 1 if self.alone else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process's number among them."""
        return 0 if self.alone else self.accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.accelerator.device

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def total(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each value, summed over the processes."""
        return dict(values) if self.size == 1 else self.accelerator.reduce(dict(values), "sum")  # type: ignore[return-value]

    def everyone(self, values: list[str]) -> list[str]:
        """The lists of all processes, one after the other."""
        return values if self.size == 1 else gather_object(values)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, on this process's device, as it is called in training."""
        if self.size == 1:
            return model.to(self.device)
        if not _sharded():
            return self.accelerator.prepare_model(model)
        for block in cast(TagiModel, model.to(self.device)).backbone.blocks:
            fully_shard(block)  # gathered one at a time, the rest for the whole step
        fully_shard(model)
        return model

    @contextlib.contextmanager
    def backward(self, model: nn.Module, *, meet: bool) -> Iterator[Callable[[Tensor], None]]:
        """Where one batch's gradient is added by what is yielded; the processes' gradients are averaged at `meet`."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(meet)
        apart = model.no_sync if isinstance(model, DistributedDataParallel) and not meet else contextlib.nullcontext
        with apart():
            yield self.accelerator.backward


def launched() -> int:
    """How many processes `torchrun` or `accelerate launch` has started for this training, 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def assemble(config: TrainingConfig, groups: int | None) -> Team:
    """The team that this process belongs to."""
    if config.optimizer in ("adafactor", "muon") and _sharded():
        raise ConfigError(f"training.optimizer: {config.optimizer} needs whole matrices, which FSDP shards; use adamw")
    accelerator = Accelerator(
        cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),  # or each process would train alone
        mixed_precision="no",  # precision is the optimizer's business, see `precision.py`
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    atexit.register(_leave)
    return Team(accelerator, alone=groups is not None)


def _sharded() -> bool:
    """Whether accelerate's config asks for FSDP; accelerate itself has it on accelerators only."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _leave() -> None:
    """End the processes' connections in order; gloo's threads otherwise abort some processes as they exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
