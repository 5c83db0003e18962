"""Generated modules as pure functions of tensors: LoRA with its products (§3.2.2), prefixes, bottleneck adapters."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.attention import softmax, split_heads
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site


def project(
    x_RLI: Tensor, weight_JI: Tensor, factors: Factors | None, rows: Rows, bias_J: Tensor | None = None
) -> Tensor:
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ with each row's own task: (R, L, in) -> (R, L, out)."""
    if factors is not None and factors.merged is not None:
        return F.linear(x_RLI, factors.merged, bias_J)
    plain = F.linear(x_RLI, weight_JI, bias_J)
    if factors is None:
        return plain
    down_RLr = rows.matmul(x_RLI, factors.a.transpose(-1, -2)) * factors.scale  # here, where it is narrow
    return plain + rows.matmul(down_RLr, factors.b.transpose(-1, -2))


def prefixed(own_RHOK: Tensor, q_RHOK: Tensor, prefix: Factors | None, rows: Rows, dropout: float = 0.0) -> Tensor:
    """What attention gave, + softmax(q P_kᵀ) P_v with each row's own prefix P, (R, H, O, K); positions play no part.

    A softmax of its own (Zhang et al. 2023, LLaMA-Adapter, §3.2) in place of one over prefix and tokens together (Li &
    Liang 2021, Eq. 3): there even a prefix of zeros takes attention away from the tokens, here values of zero change
    nothing and have a gradient, so that an untrained prefix leaves the language model as it is.
    """
    if prefix is None:
        return own_RHOK
    k, v = (split_heads(x, q_RHOK.shape[1]) for x in (prefix.a, prefix.b.transpose(-1, -2)))
    weights = F.dropout(softmax(rows.matmul(q_RHOK, k.transpose(-1, -2))), dropout)
    return own_RHOK + rows.matmul(weights, v)


def bottleneck(x_RLD: Tensor, adapter: Factors | None, rows: Rows) -> Tensor:
    """x + scale · relu(x Aᵀ) Bᵀ with each row's own adapter (Houlsby et al. 2019), without biases."""
    if adapter is None:
        return x_RLD
    inner = F.relu(rows.matmul(x_RLD, adapter.a.transpose(-1, -2)))
    return x_RLD + rows.matmul(inner, adapter.b.transpose(-1, -2)) * adapter.scale


def delta(factors: Factors) -> Tensor:
    """The product ΔW = scale · B A, (T, out, in)."""
    return factors.scale * (factors.b @ factors.a)


def merged(modules: Modules, weights: Mapping[Site, Tensor]) -> dict[Site, Factors]:
    """One task's modules with the LoRA among them added into copies of its weights; other modules as they are.

    Raises:
        ValueError: `modules` holds more than one task.
    """
    if any(factors.a.shape[0] != 1 for factors in modules.values()):
        raise ValueError("only one task's adapter can be merged into the weights")
    return {
        site: replace(f, merged=torch.addmm(weights[site], f.b[0], f.a[0], alpha=f.scale)) if site in weights else f
        for site, f in modules.items()
    }


def select(modules: Modules, index: Tensor) -> dict[Site, Factors]:
    """The modules of some tasks, in the order of `index`."""
    return {site: Factors(f.a[index], f.b[index], f.scale) for site, f in modules.items()}


def put(modules: Modules, places: Tensor, other: Modules) -> None:
    """Some tasks' modules into the places (C,) of others, in the same tensors.

    Raises:
        ValueError: the sites or scales differ.
    """
    _check_alike([modules, other])
    for site, factors in modules.items():
        factors.a[places], factors.b[places] = other[site].a, other[site].b


def stack(each: list[Modules]) -> dict[Site, Factors]:
    """Several tasks' modules, of the same sites and sizes, as one along the task dimension.

    Raises:
        ValueError: the sites or scales differ.
    """
    _check_alike(each)
    return {
        site: Factors(torch.cat([one[site].a for one in each]), torch.cat([one[site].b for one in each]), f.scale)
        for site, f in each[0].items()
    }


def one_kind(lora: Modules) -> tuple[int, float]:
    """Rank and scale of one LoRA on its way into files of others, which know one of each.

    Raises:
        ValueError: no LoRA, one of more than one task, or sites that differ in rank or scale.
    """
    kinds = {(factors.a.shape[0], factors.a.shape[1], factors.scale) for factors in lora.values()}
    if len(kinds) != 1 or (found := kinds.pop())[0] != 1:
        raise ValueError("these files hold the LoRA of one task, with one rank and scale")
    return found[1:]


def _check_alike(each: list[Modules]) -> None:
    first, *rest = each
    if any(other.keys() != first.keys() for other in rest):
        raise ValueError("adapters with different sites cannot share a batch")
    if any(other[site].scale != f.scale for other in rest for site, f in first.items()):
        raise ValueError("adapters with different LoRA scales cannot share a batch")
