"""LoRA as pure functions of tensors: application, merging, products (§3.2.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.model.backbone import Lora, LoraFactors, Site
from tagi.model.rows import Rows


def project(x_RLI: Tensor, weight_JI: Tensor, factors: LoraFactors | None, rows: Rows) -> Tensor:
    """x Wᵀ + scale · (x Aᵀ) Bᵀ with each row's own task: (R, L, in) -> (R, L, out)."""
    plain = F.linear(x_RLI, weight_JI)
    if factors is None:
        return plain
    down_RLr = rows.matmul(x_RLI, factors.a.transpose(-1, -2))
    return plain + rows.matmul(down_RLr, factors.b.transpose(-1, -2)) * factors.scale


def delta(factors: LoraFactors) -> Tensor:
    """The product ΔW = scale · B A, (T, out, in)."""
    return factors.scale * (factors.b @ factors.a)


def select(lora: Lora, index: Tensor) -> dict[Site, LoraFactors]:
    """The LoRA of some tasks, in the order of `index`."""
    return {site: LoraFactors(f.a[index], f.b[index], f.scale) for site, f in lora.items()}


def stack(loras: list[Lora]) -> dict[Site, LoraFactors]:
    """Several LoRAs of the same sites and rank as one, along the task dimension.

    Raises:
        ValueError: the sites or scales differ.
    """
    first, *rest = loras
    if any(other.keys() != first.keys() for other in rest):
        raise ValueError("adapters with different sites cannot share a batch")
    if any(other[site].scale != f.scale for other in rest for site, f in first.items()):
        raise ValueError("adapters with different LoRA scales cannot share a batch")
    return {
        site: LoraFactors(torch.cat([one[site].a for one in loras]), torch.cat([one[site].b for one in loras]), f.scale)
        for site, f in first.items()
    }
