"""Optimizers and learning rates."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.optimization import Adafactor

from tagi.backbones.language_model import LanguageModel
from tagi.config import TrainingConfig
from tagi.model.tagi import TagiModel
from tagi.train.stage import Parts

MAX_NORM = 1.0
"""What the norm of a step's gradient is clipped to."""
BETAS = (0.9, 0.98)
"""Of AdamW; 0.98 forgets a small model's first, large gradients sooner than the usual 0.999."""
RMS_FLOOR = 1e-3
"""Smallest RMS that `adamw_rms` and `muon` scale by, as in Adafactor."""
MATRICES = "matrices"
"""Muon's part of the backbone: its matrices, but for embeddings, positions and the output."""
ENCODER = "instruction_encoder"
"""A hypernetwork's own copy of the encoder: it learns at the rate of the language model that it came from."""
MOMENTUM = 0.95
MUON_SCALE = 0.4
"""RMS of Muon's update at learning rate 1; AdamW's is about 0.2 (Liu et al., 2025); twice that learned faster here."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., 2024)."""
NEWTON_SCHULZ_STEPS = 5


class RmsScaledAdamW(torch.optim.AdamW):
    """AdamW whose learning rate is multiplied by each tensor's own RMS, in groups marked `rms_scaled`.

    A T5 is initialised with standard deviations from 1 (embeddings) to (d·d_kv)^-0.5 (queries); steps in
    proportion move all of them at the same relative pace (Shazeer and Stern, 2018, §8; nanoT5).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=0.0, betas=BETAS)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update: an ordinary AdamW step, rescaled around the values before it."""
        scaled = [p for g in self.param_groups if g["rms_scaled"] for p in g["params"] if p.grad is not None]
        before = [p.clone() for p in scaled]
        super().step()
        for parameter, old in zip(scaled, before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, self._scale(self.state[parameter], old)))

    def _scale(self, state: dict[str, Any], value: Tensor) -> Tensor:
        """What the learning rate of a parameter is multiplied by, which has this value before the step."""
        return value.pow(2).mean().sqrt().clamp(min=RMS_FLOOR)


class RmsScaledMuon(RmsScaledAdamW):
    """Muon for the groups marked `orthogonal`, RMS-scaled AdamW for the others.

    The step of a matrix (m, n) is its Nesterov momentum with all singular values near 1, scaled to the RMS
    `MUON_SCALE`, times the learning rate and the RMS that the matrix had before its first step (Jordan et al., 2024;
    Liu et al., 2025, §2.2). In proportion to its RMS of the time, which steps of full rank make grow, steps grow with
    it: weights had four times their RMS after a thousand steps, and the loss stood still.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, dtype: torch.dtype) -> None:
        """`dtype` is that of the iteration which makes a step orthogonal; momentum and weights keep their own."""
        super().__init__(groups, lr)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all groups; the gradients of Muon's matrices are used up."""
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"])
                    parameter.grad = None
        super().step()

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[parameter]
        if not state:  # AdamW's names, because its loading of a state reads them
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        direction = orthogonal(gradient.lerp(momentum, MOMENTUM).to(self.dtype)).to(parameter.dtype)
        update = direction * (MUON_SCALE * math.sqrt(max(parameter.shape)))
        parameter.sub_(lr * self._scale(state, parameter) * update)

    def _scale(self, state: dict[str, Any], value: Tensor) -> Tensor:
        if "scale" not in state:
            state["scale"] = super()._scale(state, value)
        return state["scale"]


def orthogonal(matrix: Tensor) -> Tensor:
    """About U·Vᵀ of a matrix U·S·Vᵀ (m, n): singular values near 1 (Jordan et al., 2024)."""
    first, third, fifth = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build(parts: Parts, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer over the trained parts; generator and fusion have a learning rate of their own."""
    groups: list[dict[str, Any]] = []
    for part, parameters in parts.items():
        lr = config.lr * (config.hypernetwork_lr_scale if part in ("hypernetwork", "fusion") else 1.0)
        scaled = config.optimizer in ("adamw_rms", "muon") and part in ("backbone", ENCODER)
        group = {"params": list(parameters), "lr": lr, "base_lr": lr}
        groups.append(group | {"rms_scaled": scaled, "orthogonal": part == MATRICES})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0, betas=BETAS)
    if config.optimizer == "adamw_rms":
        return RmsScaledAdamW(groups, config.lr)
    if config.optimizer == "muon":
        return RmsScaledMuon(groups, config.lr, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    return Adafactor(groups, lr=config.lr, relative_step=False)


def trainable(model: TagiModel, config: TrainingConfig) -> dict[str, list[nn.Parameter]]:
    """The parameters of each trainable part that the model has: an `ENCODER` of the hypernetwork's own apart, and for
    Muon the backbone's `MATRICES`."""
    parts: dict[str, list[nn.Parameter]] = {}
    matrices = _matrices(model.backbone) if config.optimizer == "muon" else set()
    encoder = set() if model.instruction_encoder is None else set(model.instruction_encoder.parameters())
    for part in config.trainable:
        parameters = [parameter for module in model.part(part) for parameter in module.parameters()]
        groups = {
            part: [p for p in parameters if p not in matrices and p not in encoder],
            MATRICES: [p for p in parameters if p in matrices],
            ENCODER: [p for p in parameters if p in encoder],
        }
        parts |= {name: group for name, group in groups.items() if group}
    return parts


def _matrices(backbone: LanguageModel) -> set[nn.Parameter]:
    """A language model's matrices, but for its tables (embeddings, relative positions, the output)."""
    tables = {module.weight for module in backbone.modules() if isinstance(module, nn.Embedding)}
    matrices = {parameter for parameter in backbone.parameters() if parameter.dim() == 2} - tables
    return {matrix for matrix in matrices if backbone.shape.vocab_size not in matrix.shape}


def freeze(model: nn.Module, parts: Parts) -> None:
    """Let gradients reach the trained parts only."""
    model.requires_grad_(False)
    for parameters in parts.values():
        for parameter in parameters:
            parameter.requires_grad_(True)


def clip_groups(parameters: Sequence[Tensor], limit: float) -> Tensor:
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
    if config.schedule == "warmup_stable_decay":
        return min(1.0, (1.0 - step / config.steps) / config.decay)
    return 1.0


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizer's state as tensors and plain numbers, by parameter number and name.

    Every process must ask for it where the model is sharded.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = whole(value).detach().cpu().contiguous()
            else:
                numbers[f"{number}.{name}"] = value
    return tensors, numbers


def restore_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """Put back what `state_tensors` gave, in shards where the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = laid_out(value, parameters[int(number)])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(value: Any, parameter: Tensor) -> Any:
    """A value of a parameter's, sharded as that is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
