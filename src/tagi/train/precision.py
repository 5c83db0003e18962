"""Weights that compute in few bits while the optimizer keeps fp32 masters of the trained ones."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tagi.config import TrainingConfig
from tagi.train import optim
from tagi.train.stage import Parts

PartNames = Mapping[str, list[str]]


@dataclass(frozen=True)
class Weights:
    """The trained weights of a model by name, each beside its master; in fp32 the two are one."""

    model: nn.Module
    masters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    kept: Mapping[str, Tensor]
    """fp32 values of rounded tensors that are not trained: the buffers."""
    groups: int | None = None
    """How many models train in lock-step, each clipped by its own norm."""

    def update(self) -> float:
        """One step by the clipped gradients; gives their norm before, the largest where several models train in
        lock-step. One that is not finite changes nothing."""
        self.pull()
        clip = nn.utils.clip_grad_norm_ if self.groups is None else optim.clip_groups
        norm = float(optim.whole(clip(list(self.masters.values()), optim.MAX_NORM)).max())
        if math.isfinite(norm):
            self.step()
        return norm

    @torch.no_grad()
    def pull(self) -> None:
        """Hand the masters the gradients of their weights."""
        for name, master in self.masters.items():
            weight = self.model.get_parameter(name)
            if master is not weight and weight.grad is not None:
                master.grad, weight.grad = weight.grad.to(master.dtype), None

    @torch.no_grad()
    def step(self) -> None:
        """One update of the masters; the weights become their rounded copies."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, master in self.masters.items():
            weight = self.model.get_parameter(name)
            if master is not weight:
                weight.copy_(master)

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint holds instead of the model's own tensors: fp32 for rounded ones, the whole for shards.

        Every process must ask for it where the model is sharded.
        """
        values = dict(self.kept)
        for name, weight in self.model.named_parameters():
            value = self.masters.get(name, weight)
            if isinstance(value, DTensor) or value is not weight:
                values[name] = optim.whole(value).detach()
        return values


def part_names(model: nn.Module, parts: Parts) -> dict[str, list[str]]:
    """The names of the trained parameters of each part; they outlast wrapping, the parameters may not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {part: [names[id(parameter)] for parameter in parameters] for part, parameters in parts.items()}


def lower(model: nn.Module, precision: str) -> dict[str, Tensor]:
    """Round a model's tensors to a precision; gives the fp32 values of its trained parameters and its buffers."""
    if precision == "fp32":
        return {}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rounded = trained | {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    exact = {name: tensor.detach().clone() for name, tensor in rounded.items()}
    model.to(torch.bfloat16)
    return exact


def optimize(
    model: nn.Module,
    parts: PartNames,
    exact: Mapping[str, Tensor],
    config: TrainingConfig,
    groups: int | None = None,
) -> Weights:
    """Optimizer and masters of a model that is on its device, wrapped and rounded; `exact` is what `lower` gave."""
    names = [name for part in parts.values() for name in part]
    weights = {name: model.get_parameter(name) for name in names}
    masters = {
        name: nn.Parameter(optim.laid_out(exact[name].to(weight.device), weight)) if name in exact else weight
        for name, weight in weights.items()
    }
    by_part = {part: [masters[name] for name in names] for part, names in parts.items()}
    kept = {name: value for name, value in exact.items() if name not in masters}
    return Weights(model, masters, optim.build(by_part, config), kept, groups)


@contextlib.contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other tensors in the places of its own while the block runs."""
    before: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            owner = model.get_submodule(module)
            places: dict[str, Tensor | None] = owner._parameters if leaf in owner._parameters else owner._buffers  # type: ignore[assignment]
            before.append((places, leaf, places[leaf]))
            places[leaf] = nn.Parameter(tensor, requires_grad=False) if places is owner._parameters else tensor
        yield
    finally:
        for places, leaf, own in before:
            places[leaf] = own
