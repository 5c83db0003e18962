"""The adapter generator: encoded instruction to LoRA (Eq. 2, §3.2.1), and to prefixes and bottleneck adapters alike.

Additional shape suffixes: M modules of the backbone, P the sites of each (q and v; one for other kinds), Q queries per
site, h the hidden width, r the rows that a site is written (LoRA's rank), I and J a site's input and output width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi.backbones.attention import softmax
from tagi.backbones.sites import Factors, Site
from tagi.config import HypernetworkConfig, ModuleKind
from tagi.errors import CheckpointError


class Hypernetwork(nn.Module):
    """LoRA_l^{Q,V} = MLP_l(I; idx_l^{Q,V}), one two-layer MLP per attention module, shared by q and v (Eq. 2).

    A = A₀ + generated / sqrt(in) and B = generated / sqrt(r): outputs are scaled by their fan-in. A₀ is one
    shared random matrix per site, which all teacher LoRAs start from too. The head of B starts at zero, so an
    untrained generator changes nothing.

    `rankwise`: r learned queries per site attend over I; each result becomes one row of A and one column of B.
    `flat`: one learned query per site does, and one output head writes all of A and B from its result.
    A prefix's keys and values are attended to, not multiplied by hidden states, so they are not scaled.
    """

    a0: Tensor  # (M·P, r, I)

    def __init__(
        self,
        sites: Sequence[Site],
        d_model: int,
        shape: tuple[int, int],
        config: HypernetworkConfig,
        kind: ModuleKind = "lora",
    ) -> None:
        """The sites of a module stand together; all have the (in, out) widths of `shape`."""
        super().__init__()
        self.config, self.sites, self.kind, self.rank = config, tuple(sites), kind, config.size(kind)
        self.width_in, self.width_out = shape
        self.fan_in = (1, 1) if kind == "prefix" else (self.width_in, self.rank)
        rankwise = config.generator == "rankwise"
        self.per_site, self.per_query = (self.rank, 1) if rankwise else (1, self.rank)
        modules = len({(site.kind, site.layer) for site in self.sites})
        self.per_module = len(self.sites) // modules
        self.register_buffer("a0", torch.empty(len(self.sites), self.rank, self.width_in))
        self.index = nn.Parameter(torch.empty(modules, self.per_module, 1, d_model))
        self.query = nn.Parameter(torch.empty(modules, self.per_module, self.per_site, d_model))
        self.inner = nn.Parameter(torch.empty(modules, d_model, config.hidden))
        self.inner_bias = nn.Parameter(torch.empty(modules, 1, config.hidden))
        self.head_a = nn.Parameter(torch.empty(modules, config.hidden, self.per_query * self.width_in))
        self.head_b = nn.Parameter(torch.empty(modules, config.hidden, self.per_query * self.width_out))

    def factors(self, memory_TSD: Tensor, mask_TS: Tensor) -> dict[Site, Factors]:
        """Encoded instructions (T, S, D) and their mask (T, S) to the module of every site for T tasks."""
        a, b = self(memory_TSD, mask_TS)
        scale = self.config.scale if self.kind == "lora" else 1.0
        places = (divmod(number, self.per_module) for number in range(len(self.sites)))
        return {site: Factors(a[m, :, p], b[m, :, p], scale) for site, (m, p) in zip(self.sites, places, strict=True)}

    def forward(self, memory_TSD: Tensor, mask_TS: Tensor) -> tuple[Tensor, Tensor]:
        """The same as all A (M, T, P, r, in) and all B (M, T, P, out, r)."""
        hidden_MTXh = self._inner(self.pool(memory_TSD, mask_TS) + self.index)
        a = self._head(hidden_MTXh, self.head_a, self.fan_in[0])
        b = self._head(hidden_MTXh, self.head_b, self.fan_in[1])
        a += self.a0.unflatten(0, (-1, 1, self.per_module))
        return a, b.transpose(-1, -2)

    def start_from(self, a0: Mapping[Site, Tensor]) -> None:
        """Take A₀ (r, in) of every site from a teacher bank.

        Raises:
            CheckpointError: it has another rank or width.
        """
        given = torch.stack([a0[site] for site in self.sites])
        if given.shape != self.a0.shape:
            raise CheckpointError(f"the bank's LoRAs have rank {given.shape[1]}, the generator's {self.a0.shape[1]}")
        self.a0.copy_(given)

    def pool(self, memory_TSD: Tensor, mask_TS: Tensor) -> Tensor:
        """What every query finds in the encoded instructions, padding masked: (T, M, P, Q, D)."""
        queries = self.query.flatten(0, 2) * self.query.shape[-1] ** -0.5
        hidden = mask_TS[:, None, :] == 0
        scores = queries @ memory_TSD.transpose(-1, -2)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = softmax(scores).masked_fill(hidden, 0.0)
        return (weights @ memory_TSD).unflatten(1, self.query.shape[:3])

    def _inner(self, pooled_TMPQD: Tensor) -> Tensor:
        """First layer of every module's own MLP, as one batched product: (M, T, P·Q, h)."""
        by_module_MXD = pooled_TMPQD.transpose(0, 1).flatten(1, 3)
        hidden = F.gelu(by_module_MXD @ self.inner + self.inner_bias)
        return hidden.unflatten(1, (len(pooled_TMPQD), -1))

    def _head(self, hidden_MTXh: Tensor, head: Tensor, fan_in: int) -> Tensor:
        """Second layer, scaled by its fan-in: (M, T, P, r, width)."""
        out = hidden_MTXh.flatten(1, 2) @ (head * fan_in**-0.5)
        return out.view(*hidden_MTXh.shape[:2], self.per_module, self.rank, -1)


def initialise(hypernetwork: Hypernetwork, generator: torch.Generator) -> None:
    """Random A₀, queries, index and first layers; the head of B zero, that of A by its fan-in."""
    h = hypernetwork
    fan_in = {"a0": h.fan_in[0], "index": 1, "inner": h.inner.shape[1], "head_a": h.config.hidden, "query": 1}
    with torch.no_grad():
        for name, width in fan_in.items():
            getattr(h, name).normal_(0.0, width**-0.5, generator=generator)
        h.inner_bias.zero_()
        h.head_b.zero_()


def parameter_count(module: nn.Module) -> int:
    """Number of scalars in a module's parameters."""
    return sum(p.numel() for p in module.parameters())
