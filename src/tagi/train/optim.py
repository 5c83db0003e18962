"""Optimizers and learning rates."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.optimization import Adafactor

from tagi.config import TrainingConfig
from tagi.model.tagi import TagiModel
from tagi.train.stage import Parts

BETAS = (0.9, 0.98)
"""Of AdamW; 0.98 forgets a small model's first, large gradients sooner than the usual 0.999."""
RMS_FLOOR = 1e-3
"""Smallest RMS that `adamw_rms` scales by, as in Adafactor."""


class RmsScaledAdamW(torch.optim.AdamW):
    """AdamW whose learning rate is multiplied by each tensor's own RMS, in groups marked `rms_scaled`.

    A T5 is initialised with standard deviations from 1 (embeddings) to (d·d_kv)^-0.5 (queries); steps in
    proportion move all of them at the same relative pace (Shazeer and Stern, 2018, §8; nanoT5).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, betas=BETAS)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update: an ordinary AdamW step, rescaled around the values before it."""
        scaled = [p for g in self.param_groups if g["rms_scaled"] for p in g["params"] if p.grad is not None]
        before = [p.clone() for p in scaled]
        super().step()
        for parameter, old in zip(scaled, before, strict=True):
            rms = old.pow(2).mean().sqrt().clamp(min=RMS_FLOOR)
            parameter.copy_(torch.lerp(old, parameter, rms))


def build(parts: Parts, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer over the trained parts; generator and fusion have a learning rate of their own."""
    groups = [_group(part, parameters, config) for part, parameters in parts.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, betas=BETAS)
    if config.optimizer == "adamw_rms":
        return RmsScaledAdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return Adafactor(groups, lr=config.lr, relative_step=False, weight_decay=config.weight_decay)


def trainable(model: TagiModel, config: TrainingConfig) -> dict[str, list[nn.Parameter]]:
    """The parameters of each trainable part that the model has."""
    parts: dict[str, list[nn.Parameter]] = {}
    for part in config.trainable:
        parameters = [parameter for module in model.part(part) for parameter in module.parameters()]
        if parameters:
            parts[part] = parameters
    return parts


def freeze(model: nn.Module, parts: Parts) -> None:
    """Let gradients reach the trained parts only."""
    model.requires_grad_(False)
    for parameters in parts.values():
        for parameter in parameters:
            parameter.requires_grad_(True)


def clip_lanes(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Clip the gradient of each model in lock-step by its own norm, as `clip_grad_norm_` does for one; the norms (N,).

    The first dimension of every parameter runs over the N models.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Factor on every group's rate at a step (from 0): linear warmup, then the schedule."""
    warm = math.ceil(config.warmup * config.steps)
    if step < warm:
        return (step + 1) / warm
    rest = (step - warm) / max(config.steps - warm, 1)
    if config.schedule == "linear":
        return 1.0 - rest
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * rest))
    if config.schedule == "trapezoid":
        return min(1.0, (1.0 - step / config.steps) / config.decay)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Apply the factor to every group's own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizer's state as tensors and plain numbers, by parameter number and name."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            key = f"{number}.{name}"
            if isinstance(value, Tensor):
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                tensors[key] = whole.detach().cpu().contiguous()
            else:
                numbers[key] = value
    return tensors, numbers


def restore_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """Put back what `state_tensors` gave, in shards where the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = _laid_out(value, parameters[int(number)])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A tensor of the optimizer's state, sharded as its parameter is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def _group(part: str, parameters: Iterable[nn.Parameter], config: TrainingConfig) -> dict[str, Any]:
    scaled = part in ("hypernetwork", "fusion")
    lr = config.lr * (config.hypernetwork_lr_scale if scaled else 1.0)
    return {
        "params": list(parameters),
        "lr": lr,
        "base_lr": lr,
        "rms_scaled": config.optimizer == "adamw_rms" and part == "backbone",
    }
