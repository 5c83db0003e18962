"""The adapter generator: encoded instruction to LoRA (Eq. 2, §3.2.1), and to prefixes and bottleneck adapters alike.

Additional shape suffixes: M modules of the backbone, P the sites of each (q and v; one for other kinds), Q pooled
vectors per site, h the hidden width, r the rows that a site is generated (LoRA's rank), I and J a site's input and
output width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi.backbones.attention import softmax
from tagi.backbones.sites import Factors, Site
from tagi.config import HypernetworkConfig, ModuleKind
from tagi.errors import CheckpointError


class Hypernetwork(nn.Module):
    """The generator of every module of one kind: LoRA, prefixes, or bottleneck adapters.

    Modules that have the same places (q and v, say) are generated together, as a batch of MLPs.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        d_model: int,
        shape_of: Callable[[Site], tuple[int, int]],
        config: HypernetworkConfig,
        kind: ModuleKind = "lora",
        *,
        generates: bool = True,
    ) -> None:
        """The sites of a module stand together; `shape_of` gives a site's (in, out) widths.

        Args:
            generates: whether modules depend on the instruction; if not, all tasks share the learned A₀ and B₀.
        """
        super().__init__()
        self.config, self.sites, self.kind = config, tuple(sites), kind
        learned = config.bias == "learned" or not generates
        groups: dict[tuple[object, ...], list[list[Site]]] = {}
        for module in _modules(sites):
            alike = tuple((site.place, shape_of(site)) for site in module)
            groups.setdefault(alike, []).append(module)
        self.groups = nn.ModuleList(
            ModuleGroup(modules, d_model, [shape_of(s) for s in modules[0]], config, kind, generates, learned)
            for modules in groups.values()
        )

    def forward(self, hidden_TSD: Tensor, mask_TS: Tensor) -> dict[Site, Factors]:
        """Encoded instructions (T, S, D) and their mask (T, S) to the module of every site for T tasks."""
        found = {site: f for group in self._groups for site, f in group(hidden_TSD, mask_TS).items()}
        return {site: found[site] for site in self.sites}

    @property
    def a0(self) -> dict[Site, Tensor]:
        """A₀ (r, in) of every site."""
        return {site: a0 for group in self._groups for site, a0 in group.start().items()}

    @property
    def shared(self) -> dict[Site, Factors]:
        """The LoRA (1, …) that all tasks share, where the bias is learned; empty where it is not."""
        return {site: factors for group in self._groups for site, factors in group.shared().items()}

    def start_from(self, a0: Mapping[Site, Tensor]) -> None:
        """Take A₀ (r, in) of every site from a LoRA bank.

        Raises:
            CheckpointError: it has another rank or width.
        """
        for site, own in self.a0.items():
            if a0[site].shape != own.shape:
                raise CheckpointError(f"the bank's LoRAs have rank {a0[site].shape[0]}, the generator's {own.shape[0]}")
            own.data.copy_(a0[site])

    def initialise(self, generator: torch.Generator) -> None:
        """Random A₀, queries, index and first layers; the heads of B zero, those of A by their fan-in."""
        with torch.no_grad():
            for group in self._groups:
                wide = 1 if group.kind == "prefix" else None
                for place, (width, _) in enumerate(group.widths):
                    getattr(group, f"a0_{place}").normal_(0.0, (wide or width) ** -0.5, generator=generator)
                    if group.learned:
                        getattr(group, f"b0_{place}").zero_()
                if not group.generates:
                    continue
                for tensor, fan_in in ((group.index, 1), (group.query, 1), (group.inner, group.inner.shape[1])):
                    tensor.normal_(0.0, fan_in**-0.5, generator=generator)
                for head in group.head_a.values():
                    head.normal_(0.0, head.shape[1] ** -0.5, generator=generator)
                for head in group.head_b.values():
                    head.zero_()
                group.inner_bias.zero_()

    @property
    def _groups(self) -> list["ModuleGroup"]:
        return cast("list[ModuleGroup]", list(self.groups))


class ModuleGroup(nn.Module):
    """LoRA_l^{Q,V} = MLP_l(I; idx_l^{Q,V}), one two-layer MLP per module, shared by its places (Eq. 2).

    A = A₀ + generated / sqrt(in) and B = generated / sqrt(r): outputs are scaled by their fan-in. A₀ is one
    shared random matrix per site, which all per-task LoRAs start from too. The head of B starts at zero, so an
    untrained generator changes nothing. Places of the same width share a head; where widths differ, as q's and v's do
    under grouped heads, there is one for each.

    A learned bias is one LoRA for all tasks, A₀ and B₀, to which the generator adds what a task needs: B = B₀ +
    generated / sqrt(r). It alone is left where nothing is generated.

    r learned queries per site attend over I; each result becomes one row of A and one column of B.
    A prefix's keys and values are attended to, not multiplied by hidden states, so they are not scaled.
    """

    def __init__(
        self,
        modules: Sequence[Sequence[Site]],
        d_model: int,
        widths: Sequence[tuple[int, int]],
        config: HypernetworkConfig,
        kind: ModuleKind,
        generates: bool,
        learned: bool,
    ) -> None:
        """`modules` are the sites of each, `widths` the (in, out) of every place; `learned` is the bias."""
        super().__init__()
        self.modules_, self.widths, self.kind = [tuple(one) for one in modules], tuple(widths), kind
        self.generates, self.learned = generates, learned
        self.rank, self.scale = config.size(kind), config.scale if kind == "lora" else 1.0
        count, hidden = len(modules), config.hidden
        for place, (wide, out) in enumerate(widths):
            self._bias(f"a0_{place}", torch.empty(count, self.rank, wide))
            if learned:
                self._bias(f"b0_{place}", torch.empty(count, out, self.rank))
        if not generates:
            return
        self.query = nn.Parameter(torch.empty(count, len(widths), self.rank, d_model))
        self.index = nn.Parameter(torch.empty(count, len(widths), 1, d_model))
        self.inner = nn.Parameter(torch.empty(count, d_model, hidden))
        self.inner_bias = nn.Parameter(torch.empty(count, 1, hidden))
        self.head_a = _heads(count, hidden, {wide for wide, _ in widths})
        self.head_b = _heads(count, hidden, {out for _, out in widths})

    def forward(self, hidden_TSD: Tensor, mask_TS: Tensor) -> dict[Site, Factors]:
        """Encoded instructions (T, S, D) and their mask (T, S) to the module of every site for T tasks."""
        factors: dict[Site, Factors] = {}
        generated = self._generated(hidden_TSD, mask_TS) if self.generates else [None] * len(self.widths)
        for place, own in enumerate(generated):
            a0_MrI, b0_MJr = self._a0(place), getattr(self, f"b0_{place}", None)
            if own is None:
                a_TMrI, b_TMJr = (x.expand(len(mask_TS), *x.shape) for x in (a0_MrI, cast(Tensor, b0_MJr)))
            else:
                a_TMrI, b_TMJr = own[0] + a0_MrI, own[1] if b0_MJr is None else own[1] + b0_MJr
            # The backward pass of so many slices would fill as many tensors of the size of all modules with zeros.
            for sites, a, b in zip(self.modules_, a_TMrI.unbind(1), b_TMJr.unbind(1), strict=True):
                factors[sites[place]] = Factors(a, b, self.scale)
        return factors

    def _generated(self, hidden_TSD: Tensor, mask_TS: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a task's instruction adds to the bias: A (T, M, r, in) and B (T, M, out, r) of every place."""
        inner_MTPQh = self._inner(self.pool(hidden_TSD, mask_TS) + self.index)
        a_fan_in, b_fan_in = ([1] * len(self.widths),) * 2
        if self.kind != "prefix":
            a_fan_in, b_fan_in = [wide for wide, _ in self.widths], [self.rank] * len(self.widths)
        a = self._head(inner_MTPQh, self.head_a, [wide for wide, _ in self.widths], a_fan_in)
        b = self._head(inner_MTPQh, self.head_b, [out for _, out in self.widths], b_fan_in)
        return [(x.transpose(0, 1), y.transpose(0, 1).mT) for x, y in zip(a, b, strict=True)]

    def start(self) -> dict[Site, Tensor]:
        """A₀ (r, in) of every site, as views."""
        return {
            site: self._a0(place)[module]
            for module, sites in enumerate(self.modules_)
            for place, site in enumerate(sites)
        }

    def shared(self) -> dict[Site, Factors]:
        """A₀ and B₀ of every site where they are learned, as views."""
        if not self.learned:
            return {}
        return {
            site: Factors(self._a0(place)[module, None], getattr(self, f"b0_{place}")[module, None], self.scale)
            for module, sites in enumerate(self.modules_)
            for place, site in enumerate(sites)
        }

    def pool(self, hidden_TSD: Tensor, mask_TS: Tensor) -> Tensor:
        """Encoded instructions to Q vectors per site, padding masked: (T, M, P, Q, D)."""
        queries = self.query.flatten(0, 2) * self.query.shape[-1] ** -0.5
        hidden = ~mask_TS.bool()[:, None, :]
        scores = queries @ hidden_TSD.transpose(-1, -2)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = softmax(scores).masked_fill(hidden, 0.0)
        return (weights @ hidden_TSD).unflatten(1, self.query.shape[:3])

    def _inner(self, pooled_TMPQD: Tensor) -> Tensor:
        """First layer of every module's own MLP, as one batched product: (M, T, P, Q, h)."""
        by_module_MXD = pooled_TMPQD.transpose(0, 1).flatten(1, 3)
        hidden = F.gelu(by_module_MXD @ self.inner + self.inner_bias)
        return hidden.unflatten(1, (len(pooled_TMPQD), *self.query.shape[1:3]))

    def _head(
        self, inner_MTPQh: Tensor, heads: nn.ParameterDict, widths: Sequence[int], fan_in: Sequence[int]
    ) -> list[Tensor]:
        """Second layer, scaled by its fan-in: (M, T, r, width) of every place."""
        found: list[Tensor] = [inner_MTPQh] * len(widths)
        for width in dict.fromkeys(widths):
            places = [place for place, one in enumerate(widths) if one == width]
            chosen = inner_MTPQh if len(places) == len(widths) else inner_MTPQh[:, :, places]
            head = heads[str(width)] * fan_in[places[0]] ** -0.5
            out = (chosen.flatten(1, 3) @ head).unflatten(1, chosen.shape[1:4])
            for number, place in enumerate(places):
                found[place] = out[:, :, number]
        return found

    def _a0(self, place: int) -> Tensor:
        return getattr(self, f"a0_{place}")

    def _bias(self, name: str, tensor: Tensor) -> None:
        if self.learned:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


def parameter_count(module: nn.Module) -> int:
    """Number of scalars in a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def _heads(count: int, hidden: int, widths: set[int]) -> nn.ParameterDict:
    return nn.ParameterDict({str(width): nn.Parameter(torch.empty(count, hidden, width)) for width in sorted(widths)})


def _modules(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that stand together by kind and layer."""
    found: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        found.setdefault((site.kind, site.layer), []).append(site)
    return list(found.values())
