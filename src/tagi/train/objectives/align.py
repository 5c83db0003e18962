"""Alignment of generated LoRA with the LoRA bank (Eq. 4)."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from tagi.backbones.sites import Factors
from tagi.data.collate import Batch
from tagi.losses import Loss, factor_distance, product_distance
from tagi.model.bank import Bank
from tagi.model.tagi import Output
from tagi.train.stage import Term

SMALLEST_ENERGY = 1e-12
"""Below this mean energy a site of the bank is as good as untrained; it still divides by this."""


def alignment_term(bank: Bank, weight: float, mode: Literal["delta", "factors"]) -> Term:
    """λ2 · L_ins: the squared distance to the teacher, in units of the bank's mean energy of that site.

    `delta` compares the products ΔW, `factors` A with A and B with B. The mean runs over sites; a task without
    a teacher is left out.
    """
    groups = bank.group_of_task()
    measure = _MODES[mode]
    energies = {
        site: measure(factors, _start(factors, bank.a0[site])).mean().clamp(min=SMALLEST_ENERGY)
        for site, factors in bank.lora.items()
    }

    def loss(output: Output, batch: Batch) -> Loss:
        group_T = group_of(batch, groups)
        taught = (group_T >= 0).nonzero().squeeze(1)
        teachers = {site: _pick(factors, group_T[taught]) for site, factors in bank.lora.items()}
        distances = {
            site: measure(_pick(own, taught), _to(teachers[site], own.a.device))
            for site, own in output.adapter.modules.items()
        }
        relative = [d.sum() / float(energies[site]) for site, d in distances.items()]
        return Loss(torch.stack(relative).mean(), (group_T >= 0).sum().to(relative[0].device))

    def count(batch: Batch) -> Tensor:
        return (group_of(batch, groups) >= 0).sum().to(batch.labels.device)  # where processes add it up

    return Term("ins", weight, loss, count)


def group_of(batch: Batch, groups: Mapping[str, int]) -> Tensor:
    """The teacher of each of the batch's tasks, -1 where there is none, (T,)."""
    return torch.tensor([groups.get(name, -1) for name in batch.names], dtype=torch.long)


def _products(one: Factors, other: Factors) -> Tensor:
    return product_distance(one.a, one.b * one.scale, other.a, other.b * other.scale)


def _factors(one: Factors, other: Factors) -> Tensor:
    return factor_distance(one.a, other.a) + factor_distance(one.b * one.scale, other.b * other.scale)


_MODES: dict[str, Callable[[Factors, Factors], Tensor]] = {"delta": _products, "factors": _factors}


def _start(factors: Factors, a0: Tensor) -> Factors:
    """The LoRA that every teacher started from, whose distance is a teacher's energy."""
    return Factors(a0.expand_as(factors.a), torch.zeros_like(factors.b), factors.scale)


def _pick(factors: Factors, index: Tensor) -> Factors:
    index = index.to(factors.a.device)
    return Factors(factors.a[index], factors.b[index], factors.scale)


def _to(factors: Factors, device: torch.device) -> Factors:
    return Factors(factors.a.to(device), factors.b.to(device), factors.scale)
