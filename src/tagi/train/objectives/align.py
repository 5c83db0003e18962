"""Alignment of generated LoRA with the LoRA bank (Eq. 4)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tagi.backbones.lora import select
from tagi.backbones.sites import Factors, Site
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
    measure = _products if mode == "delta" else _factors
    energies: dict[Site, Tensor] = {}
    for site, factors in bank.lora.items():  # of what every teacher started from, the distance is its energy
        start = Factors(bank.a0[site].expand_as(factors.a), torch.zeros_like(factors.b), factors.scale)
        energies[site] = measure(factors, start).mean().clamp(min=SMALLEST_ENERGY)

    def loss(output: Output, batch: Batch) -> Loss:
        group_T = group_of(batch, groups)
        taught = (group_T >= 0).nonzero().squeeze(1)
        teachers = select(bank.lora, group_T[taught])
        relative: list[Tensor] = []
        for site, own in select(output.adapter.modules, taught.to(output.logits.device)).items():
            teacher, device = teachers[site], own.a.device
            teacher = Factors(teacher.a.to(device), teacher.b.to(device), teacher.scale)
            relative.append(measure(own, teacher).sum() / float(energies[site]))
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
