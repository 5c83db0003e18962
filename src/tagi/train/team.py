"""The processes that share one training: who they are, what they add up, how the model is wrapped for them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, gather_object
from torch import Tensor, nn

from tagi.config import TrainingConfig
from tagi.errors import ConfigError
from tagi.train.report import TRACKING, check_trackers

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
        """The model, on this process's device, as it is called in training.

        Raises:
            ConfigError: a way of sharing the work that is not supported.
        """
        kind = self.accelerator.distributed_type
        if self.alone or kind == DistributedType.NO:
            return model.to(self.accelerator.device)
        if kind == DistributedType.DEEPSPEED:
            raise ConfigError("DeepSpeed: is not supported; configs/accelerate/fsdp.yaml shards as ZeRO-3 does")
        return self._sharded(model) if kind == DistributedType.FSDP else self.accelerator.prepare_model(model)

    def _sharded(self, model: nn.Module) -> nn.Module:
        """FSDP2: every parameter becomes a sharded one, in place; accelerate asks for an optimizer beside the model."""
        if not self.accelerator.is_fsdp2:
            raise ConfigError(
                "FSDP: only version 2 is supported; set fsdp_version: 2, as configs/accelerate/fsdp.yaml does"
            )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped: Any = self.accelerator.prepare(model, torch.optim.SGD(trained, lr=0.0))
        return wrapped[0]


def assemble(config: TrainingConfig, folder: Path, lanes: int | None) -> Team:
    """The team that this process belongs to.

    Raises:
        ConfigError: the package of a tracker is missing.
    """
    check_trackers(config.trackers)
    accelerator = Accelerator(
        mixed_precision="no",  # precision is the optimizer's business, see `precision.py`
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder / TRACKING)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    return Team(accelerator, alone=lanes is not None)
