"""DeepSpeed's ZeRO-2 and ZeRO-3: optimizer state and gradients, and with 3 parameters too, live in shards.

DeepSpeed clips, rounds and steps here; checkpoints hold the same whole tensors as those of any other run.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi.config import TrainingConfig
from tagi.errors import ConfigError
from tagi.train import optim, precision
from tagi.train.precision import PartNames

_PARAMETERS = 3
"""The stage that shards parameters too."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


def stage() -> int | None:
    """The ZeRO stage that accelerate's config asks for; None where it does not ask for DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


def check(config: TrainingConfig) -> None:
    """Refuse what DeepSpeed cannot train.

    Raises:
        ConfigError: DeepSpeed is not installed, or the optimizer needs whole parameters.
    """
    if stage() is None:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("DeepSpeed: is not installed; pip install 'tagi[deepspeed]'")
    if config.optimizer != "adamw":
        raise ConfigError(f"training.optimizer: {config.optimizer} needs whole parameters; DeepSpeed goes with adamw")


def _library() -> Any:
    """DeepSpeed, which is an extra and slow to import."""
    return importlib.import_module("deepspeed")


def sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 keeps the parameters of a model in shards, which are whole in its own forward pass only."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


class ZeroEngine(nn.Module):
    """DeepSpeed's engine, called as the model is."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, *args: Any) -> Any:
        """The model's own forward pass."""
        return self.engine(*args)

    def backward(self, loss: Tensor, *, meet: bool) -> None:
        """Add a batch's gradient; the next step follows where the processes `meet`."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=meet)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not meet:
            self.engine.step()  # counts the batch


def engage(model: nn.Module, parts: PartNames, config: TrainingConfig) -> tuple[ZeroEngine, "ZeroWeights"]:
    """Engine and weights of a model that is on its device, whole and in fp32."""
    deepspeed = _library()
    exact = precision.lower(model, config.precision)
    trained = {name: model.get_parameter(name) for names in parts.values() for name in names}
    by_part = {part: [trained[name] for name in names] for part, names in parts.items()}
    optimizer = optim.build(by_part, config)
    deepspeed.init_distributed(dist_init_required=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=_settings(config))
    _begin_state(engine.optimizer)
    weights = ZeroWeights(engine, trained, {name: value for name, value in exact.items() if name not in trained})
    weights.set_values({name: value for name, value in exact.items() if name in trained})
    return ZeroEngine(engine), weights


def _begin_state(sharding: Any) -> None:
    """Adam's state of every shard before the first step, where DeepSpeed's ways into it can find it."""
    whole = stage() != _PARAMETERS
    shards = sharding.single_partition_of_fp32_groups if whole else sharding.fp32_partitioned_groups_flat
    state = sharding.optimizer.state
    for shard in shards:
        state[shard] = {name: torch.zeros_like(shard) for name in _MOMENTS} | {_STEP: torch.tensor(0.0)}
    for parameters, shard in zip(sharding.bit16_groups, shards, strict=True) if whole else ():
        _library().utils.lazy_init_hp_params_optimizer_state(parameters, shard, state)


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": stage()},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 2**31,
    }


@dataclass(frozen=True)
class ZeroWeights:
    """The trained weights of a model in DeepSpeed's hands; what `precision.Weights` is elsewhere."""

    engine: Any
    trained: Mapping[str, nn.Parameter]
    kept: Mapping[str, Tensor]
    """fp32 values of rounded tensors that are not trained: the buffers."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose groups say the learning rates."""
        return self.engine.optimizer

    def update(self, limit: float) -> float:
        """One step by the gradients, clipped as the engine was told; gives their norm."""
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint holds instead of the model's own tensors: fp32 for rounded ones, the whole for shards.

        Every process must ask for it.
        """
        deepspeed = _library()
        values = dict(self.kept)
        for name, parameter in self.engine.module.named_parameters():
            if name in self.trained:
                values[name] = deepspeed.utils.safe_get_full_fp32_param(parameter).detach().clone()
            elif sharded(self.engine.module):
                with deepspeed.zero.GatheredParameters([parameter]):
                    values[name] = parameter.detach().clone()
        return values

    def set_values(self, exact: Mapping[str, Tensor]) -> None:
        """Give the masters values that are not rounded."""
        for name, value in exact.items():
            _put(value, self.trained[name], None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Adam's moments and step count, laid out as one process's are; every process must ask for it."""
        tensors: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.trained.values()):
            for name in _MOMENTS:
                whole = _library().utils.safe_get_full_optimizer_state(parameter, name)
                tensors[f"{number}.{name}"] = whole.detach().cpu().contiguous()
            tensors[f"{number}.{_STEP}"] = self._steps()[0].detach().cpu().clone()
        return tensors, {}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Put back what `state` gave."""
        for number, parameter in enumerate(self.trained.values()):
            for name in _MOMENTS:
                _put(tensors[f"{number}.{name}"], parameter, name)
        for step in self._steps():
            step.copy_(tensors[f"0.{_STEP}"])

    def _steps(self) -> list[Tensor]:
        """The step counts of the shards that this process holds; all are equal."""
        return [state[_STEP] for state in self.engine.optimizer.optimizer.state.values() if _STEP in state]


def _put(value: Tensor, parameter: nn.Parameter, state: str | None) -> None:
    """Set a parameter's fp32 master, or a moment of it, from the whole tensor.

    ZeRO-3 gives every process an equal piece, the last ones padded; of those only the local setters know.
    """
    utils = _library().utils
    value = value.to(parameter.device)
    set_master, set_moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
    if hasattr(parameter, "ds_id"):
        set_master, set_moment = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
        size = torch.distributed.get_world_size()
        value = F.pad(value.flatten(), (0, -value.numel() % size)).chunk(size)[torch.distributed.get_rank()]
    if state is None:
        set_master(parameter, value)
    else:
        set_moment(parameter, value, state)
