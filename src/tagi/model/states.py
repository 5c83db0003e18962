"""The adapter generator that reads what the projections themselves would have read of the instruction.

A decoder-only model attends to an instruction through the keys and values of every block, W h of its own states h. LoRA
that is written from the last states alone has to learn all of that anew, and in hundreds of steps does not begin to.
Here B is the projection's own weight on pooled states of the instruction, at the projection's own place:

    u_r = Σ_s softmax_s(k_r · ĥ_s) (h_s - μ),   ΔW x = B_0 A_0 x + Σ_r W u_r γ_r (a_r · x)

so that a projection answers as if u_r had been added to its input in proportion to γ_r a_r · x: linear attention to r
summaries of the instruction, in a plain LoRA. Of an adapter only the summaries u are its own, those of a block's two
states; the rest is the generator's. The queries k, the rows a and the scales γ are learned; ĥ are the states
h less their mean over the training instructions, μ, over their deviation, for a few features of a language model's
states are much larger than all others.

Additional shape suffixes: P the states that an instruction has (see `Backbone.state`), r the rows that are generated.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tagi.backbones.attention import softmax
from tagi.backbones.sites import Factors, Site, StateFactors
from tagi.config import HypernetworkConfig, ModuleKind
from tagi.errors import CheckpointError, ConfigError

GAIN = 0.1
"""γ at the start: little enough to leave the shared LoRA as it is, and enough for the queries to have a gradient."""
SMALLEST = 1e-3
"""Added to every feature's deviation."""


class StateGenerator(nn.Module):
    """LoRA of every site: one half of the rank is a LoRA for all tasks, the other is written from the instruction's
    states. Projections that read none (o and down) have the shared one alone.
    """

    kind: ModuleKind = "lora"

    def __init__(
        self,
        sites: Sequence[Site],
        d_model: int,
        shape_of: Callable[[Site], tuple[int, int]],
        state_of: Callable[[Site], int | None],
        config: HypernetworkConfig,
    ) -> None:
        """`shape_of` gives a site's (in, out) widths, `state_of` which of the instruction's states it reads, if any.
        A place has the same widths in every block.

        Raises:
            ConfigError: no site reads any.
        """
        super().__init__()
        self.config, self.sites = config, tuple(sites)
        reading = {site: state for site in sites if (state := state_of(site)) is not None}
        self.read = sorted(set(reading.values()))
        """The states that any of the sites reads, of all that an instruction has."""
        if not reading:
            raise ConfigError(f"hypernetwork.target_modules: {config.target_modules} read no states of an instruction")
        self.state_of = {site: self.read.index(state) for site, state in reading.items()}
        states, written = len(self.read), config.rank // 2
        self.query = nn.Parameter(torch.empty(states, written, d_model))
        self.mean = nn.Buffer(torch.zeros(states, d_model))
        self.deviation = nn.Buffer(torch.ones(states, d_model))
        self.a_shared, self.b_shared, self.a_own, self.gain = (nn.ParameterDict() for _ in range(4))
        for site in sites:
            (wide, out), reads = shape_of(site), site in self.state_of
            layers = 1 + max(one.layer for one in sites if one.place == site.place)
            shared = config.rank - written if reads else config.rank
            if site.place in self.a_shared:
                continue
            self.a_shared[site.place] = nn.Parameter(torch.empty(layers, shared, wide))
            self.b_shared[site.place] = nn.Parameter(torch.empty(layers, out, shared))
            if reads:
                self.a_own[site.place] = nn.Parameter(torch.empty(layers, written, wide))
                self.gain[site.place] = nn.Parameter(torch.empty(layers, written, 1))

    def forward(self, states_TSPD: Tensor | None, mask_TS: Tensor) -> Tensor:
        """States (T, S, P, D) of T instructions, None where they have no tokens, and their mask to all of them that an
        adapter keeps: r summaries of each state that is read, (T, P, r, D)."""
        if states_TSPD is None:
            states_TSPD = self.query.new_zeros(*mask_TS.shape, 1 + max(self.read), self.query.shape[-1])
        return self.pool(self._own(states_TSPD), mask_TS)

    def lora(self, summaries_TPrD: Tensor) -> dict[Site, StateFactors]:
        """The LoRA of every site that such summaries are written as."""
        # Slices of a stack would each fill a gradient of its size with zeros; what is unbound once does not.
        a0, b0, own_a = (
            {place: x.unbind() for place, x in each.items()} for each in (self.a_shared, self.b_shared, self._rows())
        )
        u_PTrD, found = summaries_TPrD.unbind(1), dict[Site, StateFactors]()
        for site in self.sites:
            place, layer = site.place, site.layer
            a, b = a0[place][layer], b0[place][layer]
            own, u = a[:0], summaries_TPrD.new_zeros(len(summaries_TPrD), 0, a.shape[1])
            if site in self.state_of:
                own, u = own_a[place][layer], u_PTrD[self.state_of[site]]
            found[site] = StateFactors(a, b, own, u, self.config.scale)
        return found

    def _rows(self) -> dict[str, Tensor]:
        """The own rows of every place (layers, r, in), γ with them."""
        return {place: own * self.gain[place] for place, own in self.a_own.items()}

    def pool(self, states_TSPD: Tensor, mask_TS: Tensor) -> Tensor:
        """The own states (T, S, P, D) to r summaries of each, padding masked, the mean taken off: (T, P, r, D)."""
        centred = states_TSPD - self.mean
        scores = torch.einsum("prd,tspd->tprs", self.query, centred / self.deviation)
        hidden = ~mask_TS.bool()[:, None, None]
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        return torch.einsum("tprs,tspd->tprd", softmax(scores).masked_fill(hidden, 0.0), centred)

    def initialise(self, generator: torch.Generator) -> None:
        """Random rows and queries by their fan-in, B₀ zero and γ small."""
        with torch.no_grad():
            for tensor in (self.query, *self.a_shared.values(), *self.a_own.values()):
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
            for b_0 in self.b_shared.values():
                b_0.zero_()
            for gain in self.gain.values():
                gain.fill_(GAIN)

    @torch.no_grad()
    def observe(self, states_LPD: Tensor) -> None:
        """Take the mean and the deviation of the states (L, P, D) of training instructions' tokens."""
        own = self._own(states_LPD).float()
        self.mean.copy_(own.mean(0))
        self.deviation.copy_(own.std(0) + SMALLEST)

    def _own(self, states: Tensor) -> Tensor:
        """Of all states (..., P, D) those that are read."""
        return states if states.shape[-2] == len(self.read) else states[..., self.read, :]

    @property
    def shared(self) -> dict[Site, Factors]:
        """The LoRA (1, …) that all tasks share, as views."""
        found: dict[Site, Factors] = {}
        for site in self.sites:
            a, b = self.a_shared[site.place][site.layer], self.b_shared[site.place][site.layer]
            found[site] = Factors(a[None], b[None], self.config.scale)
        return found

    @torch.no_grad()
    def share(self, shared: Mapping[Site, Factors]) -> None:
        """Begin with the LoRA that all tasks shared in another model, at the sites of both.

        Raises:
            CheckpointError: it has a higher rank than there is place for.
        """
        for site in shared.keys() & set(self.sites):
            factors = shared[site]
            rank, place = factors.a.shape[1], self.a_shared[site.place].shape[1]
            if rank > place:
                raise CheckpointError(f"hypernetwork.rank: {place} rows for all tasks at {site}; start_from has {rank}")
            self.a_shared[site.place][site.layer, :rank] = factors.a[0] * factors.scale / self.config.scale
            self.b_shared[site.place][site.layer, :, :rank] = factors.b[0]

    @property
    def a0(self) -> dict[Site, Tensor]:
        """No A₀ that a bank's LoRAs could begin with."""
        return {}

    def start_from(self, a0: Mapping[Site, Tensor]) -> None:
        """
        Raises:
            ConfigError: always, see `a0`.
        """
        raise ConfigError("bank: hypernetwork.generator states has no A₀ that the bank's LoRAs could share")
