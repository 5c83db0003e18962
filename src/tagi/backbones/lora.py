"""Generated modules as pure functions of tensors: LoRA with its products (§3.2.2), prefixes, bottleneck adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.attention import softmax, split_heads
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site, StateFactors

AnyFactors = TypeVar("AnyFactors", bound=Factors | StateFactors)


def project(
    x_RLI: Tensor,
    weight_JI: Tensor,
    factors: Factors | StateFactors | None,
    rows: Rows,
    bias_J: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ with each row's own task: (R, L, in) -> (R, L, out)."""
    if isinstance(factors, StateFactors):
        return _project_states(x_RLI, weight_JI, factors, rows, bias_J)
    if factors is not None and factors.merged is not None:
        return F.linear(x_RLI, factors.merged, bias_J)
    plain = F.linear(x_RLI, weight_JI, bias_J)
    if factors is None:
        return plain
    down_RLr = rows.matmul(x_RLI, factors.a.transpose(-1, -2)) * factors.scale  # here, where it is narrow
    return plain + rows.matmul(down_RLr, factors.b.transpose(-1, -2))


def _project_states(
    x_RLI: Tensor, weight_JI: Tensor, factors: StateFactors, rows: Rows, bias_J: Tensor | None
) -> Tensor:
    """(x + scale · (x Aᵀ) U) Wᵀ + bias + scale · (x A₀ᵀ) B₀ᵀ: no matrix but U is read once a task."""
    moved = x_RLI
    if len(factors.a):
        moved = x_RLI + rows.matmul(F.linear(x_RLI, factors.a) * factors.scale, factors.u)
    shared = F.linear(F.linear(x_RLI, factors.shared_a) * factors.scale, factors.shared_b)
    return F.linear(moved, weight_JI, bias_J) + shared


def prefixed(
    own_RHOK: Tensor, q_RHOK: Tensor, prefix: Factors | StateFactors | None, rows: Rows, dropout: float = 0.0
) -> Tensor:
    """What attention gave, + softmax(q P_kᵀ) P_v with each row's own prefix P, (R, H, O, K); positions play no part.

    A softmax of its own (Zhang et al. 2023, LLaMA-Adapter, §3.2) in place of one over prefix and tokens together (Li &
    Liang 2021, Eq. 3): there even a prefix of zeros takes attention away from the tokens, here values of zero change
    nothing and have a gradient, so that an untrained prefix leaves the language model as it is.
    """
    if prefix is None:
        return own_RHOK
    assert isinstance(prefix, Factors)  # others are of projections only, here as below
    k, v = (split_heads(x, q_RHOK.shape[1]) for x in (prefix.a, prefix.b.transpose(-1, -2)))
    weights = F.dropout(softmax(rows.matmul(q_RHOK, k.transpose(-1, -2))), dropout)
    return own_RHOK + rows.matmul(weights, v)


def bottleneck(x_RLD: Tensor, adapter: Factors | StateFactors | None, rows: Rows) -> Tensor:
    """x + scale · relu(x Aᵀ) Bᵀ with each row's own adapter (Houlsby et al. 2019), without biases."""
    if adapter is None:
        return x_RLD
    assert isinstance(adapter, Factors)
    inner = F.relu(rows.matmul(x_RLD, adapter.a.transpose(-1, -2)))
    return x_RLD + rows.matmul(inner, adapter.b.transpose(-1, -2)) * adapter.scale


def delta(factors: Factors) -> Tensor:
    """The product ΔW = scale · B A, (T, out, in)."""
    return factors.scale * (factors.b @ factors.a)


def whole(modules: Modules, weights: Mapping[Site, Tensor]) -> dict[Site, Factors]:
    """All modules as two matrices of each task."""
    return {site: f.factors(weights[site]) if isinstance(f, StateFactors) else f for site, f in modules.items()}


def merged(modules: Modules, weights: Mapping[Site, Tensor]) -> dict[Site, Factors]:
    """One task's modules with the LoRA among them added into copies of its weights; other modules as they are.

    Raises:
        ValueError: `modules` holds more than one task.
    """
    if any(factors.tasks != 1 for factors in modules.values()):
        raise ValueError("only one task's adapter can be merged into the weights")
    return {
        site: replace(f, merged=torch.addmm(weights[site], f.b[0], f.a[0], alpha=f.scale)) if site in weights else f
        for site, f in whole(modules, weights).items()
    }


def select(modules: Mapping[Site, AnyFactors], index: Tensor) -> dict[Site, AnyFactors]:
    """The modules of some tasks, in the order of `index`."""
    return _each([modules], lambda own: own[0][index])


def put(modules: Modules, places: Tensor, other: Modules) -> None:
    """Some tasks' modules into the places (C,) of others, in the same tensors.

    Raises:
        ValueError: the sites, kinds or scales differ.
    """

    def written(both: Sequence[Tensor]) -> Tensor:
        both[0][places] = both[1]
        return both[0]

    _each([modules, other], written)


def stack(each: Sequence[Mapping[Site, AnyFactors]]) -> dict[Site, AnyFactors]:
    """Several tasks' modules, of the same sites and sizes, as one along the task dimension.

    Raises:
        ValueError: the sites, kinds or scales differ.
    """
    return _each(each, lambda own: torch.cat(list(own)))


def _each(
    modules: Sequence[Mapping[Site, AnyFactors]], do: Callable[[Sequence[Tensor]], Tensor]
) -> dict[Site, AnyFactors]:
    """The first modules with every tensor of tasks made anew of all modules'; once where several sites share it."""
    first, *rest = modules
    if any(other.keys() != first.keys() for other in rest):
        raise ValueError("adapters with different sites cannot share a batch")
    done: dict[tuple[int, ...], Tensor] = {}

    def once(*own: Tensor) -> Tensor:
        key = tuple(map(id, own))
        if key not in done:
            done[key] = do(own)
        return done[key]

    found: dict[Site, AnyFactors] = {}
    for site, f in first.items():
        every = [f, *(other[site] for other in rest)]
        if any(type(other) is not type(f) or other.scale != f.scale for other in every):
            raise ValueError("adapters with LoRA of different kinds or scales cannot share a batch")
        found[site] = f.with_own([once(*alike) for alike in zip(*(one.own for one in every), strict=True)])
    return found


def ranks(modules: Modules) -> int | list[int] | None:
    """Of modules: several where they differ, None where there are none."""
    found = sorted({factors.rank for factors in modules.values()})
    return found[0] if len(found) == 1 else found or None


def one_kind(lora: Modules) -> tuple[int, float]:
    """Rank and scale of one LoRA on its way into files of others, which know one of each.

    Raises:
        ValueError: no LoRA, one of more than one task, or sites that differ in rank or scale.
    """
    kinds = {(factors.tasks, factors.rank, factors.scale) for factors in lora.values()}
    if len(kinds) != 1 or (found := kinds.pop())[0] != 1:
        raise ValueError("these files hold the LoRA of one task, with one rank and scale")
    return found[1:]
