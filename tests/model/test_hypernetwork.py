"""The adapter generator (Eq. 2) against a literal loop over tasks, sites, queries and ranks."""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from builders import normal, seeded, small_decoder, small_t5, worst
from tagi.backbones.language_model import LanguageModel, build
from tagi.backbones.sites import Factors, Site
from tagi.config import DecoderShape, HypernetworkConfig, ModuleKind, Rotary, Shape, T5Shape, Target
from tagi.errors import CheckpointError
from tagi.model.hypernetwork import Hypernetwork, ModuleGroup, parameter_count

D_MODEL, RANK, SCALE = 32, 3, 2.0
LITERAL = 1e-5  # worst 1.9e-6, values up to 18
EVERY: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")
PLAIN = HypernetworkConfig(rank=RANK, alpha=RANK * SCALE, prefix=RANK, bottleneck=RANK, hidden=8)
CONFIGS = {
    "fixed bias": PLAIN,
    "learned bias": PLAIN.model_copy(update={"bias": "learned"}),
}
BACKBONES: dict[str, tuple[LanguageModel, tuple[Target, ...]]] = {
    "t5": (small_t5(), ("q", "v")),
    "decoder, v narrower than q": (small_decoder(), ("q", "v")),
    "decoder, every projection": (small_decoder(), EVERY),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> HypernetworkConfig:
    return CONFIGS[request.param]


@pytest.fixture(params=BACKBONES)
def on(request: pytest.FixtureRequest) -> str:
    """The language model that the generator writes for, and its target modules."""
    return request.param


def generator(
    config: HypernetworkConfig, on: str = "t5", kind: ModuleKind = "lora", *, seed: int = 0, trained: bool = True
) -> Hypernetwork:
    """A small generator; `trained` gives random values to what starts at zero."""
    backbone, targets = BACKBONES[on]
    made = Hypernetwork(backbone.sites(kind, targets), D_MODEL, backbone.site_shape, config, kind)
    made.initialise(seeded(seed))
    if trained:
        with torch.no_grad():
            for group in groups_of(made):
                for head in group.head_b.values():
                    head.normal_(generator=seeded(seed + 1))
                for b0 in biases(group):
                    b0.normal_(generator=seeded(seed + 3))
                group.inner_bias.normal_(generator=seeded(seed + 2))
    return made


def biases(group: ModuleGroup) -> list[Tensor]:
    """B₀ of every place, where it is learned."""
    return [parameter for name, parameter in group.named_parameters() if name.startswith("b0_")]


def groups_of(net: Hypernetwork) -> list[ModuleGroup]:
    return cast("list[ModuleGroup]", list(net.groups))


def instructions(lengths: Sequence[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Encoded instructions with random content in their padding too, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return normal(len(lengths), max(lengths), D_MODEL, seed=seed), mask


def places(net: Hypernetwork) -> Iterator[tuple[Site, ModuleGroup, int, int]]:
    """Every site, with its group, its module there and its place in the module."""
    for group in groups_of(net):
        for module, sites in enumerate(group.modules_):
            yield from ((site, group, module, place) for place, site in enumerate(sites))


def literal_pooled(group: ModuleGroup, hidden: Tensor, module: int, place: int) -> list[Tensor]:
    """The pooled vectors of one site for one unpadded instruction (S, D)."""
    pooled: list[Tensor] = []
    for query in group.query[module, place]:
        scores = [math.exp(float(query @ token) / math.sqrt(D_MODEL)) for token in hidden]
        weighted = [score / sum(scores) * token for score, token in zip(scores, hidden, strict=True)]
        pooled.append(torch.stack(weighted).sum(0))
    return pooled


def literal_site(
    net: Hypernetwork, hidden: Tensor, group: ModuleGroup, module: int, place: int
) -> tuple[Tensor, Tensor]:
    """Eq. 2 for one site and one unpadded instruction, one output vector at a time."""
    wide, out = group.widths[place]
    scale_a, scale_b = (1.0, 1.0) if net.kind == "prefix" else (wide**-0.5, RANK**-0.5)
    a, b = torch.zeros(RANK, wide), torch.zeros(out, RANK)
    learned = biases(group)
    for rank, vector in enumerate(literal_pooled(group, hidden, module, place)):
        inner = F.gelu((vector + group.index[module, place, 0]) @ group.inner[module] + group.inner_bias[module, 0])
        out_a = inner @ group.head_a[str(wide)][module]
        out_b = inner @ group.head_b[str(out)][module]
        a[rank] = getattr(group, f"a0_{place}")[module, rank] + out_a * scale_a
        b[:, rank] = out_b * scale_b
        if learned:
            b[:, rank] += learned[place][module, :, rank]
    return a, b


@pytest.mark.parametrize("kind", ["lora", "prefix", "bottleneck"])
@torch.no_grad()
def test_equation_2_literally(config: HypernetworkConfig, on: str, kind: ModuleKind) -> None:
    net, lengths = generator(config, on, kind), [5, 1, 3]
    hidden, mask = instructions(lengths)
    found = net(hidden, mask)
    backbone, targets = BACKBONES[on]
    assert tuple(found) == backbone.sites(kind, targets)
    assert {site for site, *_ in places(net)} == set(found)
    for site, group, module, place in places(net):
        assert found[site].scale == (SCALE if kind == "lora" else 1.0)
        assert (found[site].a.shape[2], found[site].b.shape[1]) == backbone.site_shape(site)
        for task, length in enumerate(lengths):
            a, b = literal_site(net, hidden[task, :length], group, module, place)
            assert worst(found[site].a[task], a) < LITERAL, site
            assert worst(found[site].b[task], b) < LITERAL, site


def test_places_share_a_head_where_they_are_of_one_width() -> None:
    """And modules that have the same places are generated together."""
    expected = {
        "t5": [({"32"}, {"24"})],
        "decoder, v narrower than q": [({"32"}, {"24", "12"})],
        "decoder, every projection": [({"32", "24"}, {"24", "12", "32"}), ({"32", "40"}, {"40", "32"})],
    }
    for on, heads in expected.items():
        groups = groups_of(generator(PLAIN, on))
        assert [(set(group.head_a), set(group.head_b)) for group in groups] == heads


@torch.no_grad()
def test_content_of_padding_changes_no_bit(config: HypernetworkConfig, on: str) -> None:
    net = generator(config, on)
    hidden, mask = instructions([5, 1, 3])
    other = torch.where(mask[..., None], hidden, 100.0)
    assert_same(net(hidden, mask), net(other, mask))


@torch.no_grad()
def test_amount_of_padding_does_not_matter(config: HypernetworkConfig, on: str) -> None:
    net = generator(config, on)
    hidden, mask = instructions([4])
    plain = net(hidden, mask)
    padded = net(F.pad(hidden, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3)))
    for site in net.sites:
        assert worst(padded[site].a, plain[site].a) < LITERAL
        assert worst(padded[site].b, plain[site].b) < LITERAL


@torch.no_grad()
def test_an_instruction_of_padding_alone_gives_finite_lora_without_its_content(
    config: HypernetworkConfig, on: str
) -> None:
    net = generator(config, on)
    hidden, mask = instructions([4])
    nothing = torch.zeros_like(mask)
    lora = net(hidden, nothing)
    assert all(f.a.isfinite().all() and f.b.isfinite().all() for f in lora.values())
    assert_same(lora, net(-hidden, nothing))


@torch.no_grad()
def test_untrained_lora_has_b_zero_and_a_of_its_own_for_each_task(config: HypernetworkConfig, on: str) -> None:
    hidden, mask = instructions([5, 5])
    for site, factors in generator(config, on, trained=False)(hidden, mask).items():
        assert not factors.b.any(), site
        assert (factors.a[0] - factors.a[1]).abs().max() > 0.01, site  # least measured 0.032
        # measured 0.94 to 1.63: A₀ and what is generated add up
        assert 0.5 < float(factors.a.norm(dim=-1).mean()) < 2.5, "rows of A have about unit length"


def test_the_first_gradient_goes_to_the_heads_of_b_and_then_everywhere(config: HypernetworkConfig, on: str) -> None:
    net = generator(config, on, trained=False)
    hidden, mask = instructions([5, 2])
    heads = [head for group in groups_of(net) for head in (*group.head_b.values(), *biases(group))]
    product_loss(net, hidden, mask).backward()
    reached = [parameter for parameter in net.parameters() if parameter.grad is not None and parameter.grad.any()]
    assert {id(parameter) for parameter in reached} == {id(head) for head in heads}
    with torch.no_grad():
        for head in heads:
            assert head.grad is not None
            head.sub_(0.1 * head.grad)
    product_loss(net, hidden, mask).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def product_loss(net: Hypernetwork, hidden: Tensor, mask: Tensor) -> Tensor:
    products = [(f.b @ f.a - 1.0).pow(2).sum() for f in net(hidden, mask).values()]
    return torch.stack(products).sum()


def test_a0_is_kept_with_the_weights_but_is_no_parameter(on: str) -> None:
    net = generator(PLAIN, on)
    own = {tensor.data_ptr() for name, tensor in net.state_dict().items() if name not in dict(net.named_parameters())}
    assert set(net.a0) == set(net.sites)
    for site, a0 in net.a0.items():
        assert a0.shape == (RANK, BACKBONES[on][0].site_shape(site)[0])
        assert a0.untyped_storage().data_ptr() in own


def test_a_generator_starts_from_the_a0_of_a_bank(on: str) -> None:
    one, other = generator(PLAIN, on), generator(PLAIN, on, seed=7)
    one.start_from(other.a0)
    for site, a0 in one.a0.items():
        assert torch.equal(a0, other.a0[site]), site
    with pytest.raises(CheckpointError, match="the bank's LoRAs have rank 2, the generator's 3"):
        one.start_from({site: a0[:2] for site, a0 in other.a0.items()})


@torch.no_grad()
def test_what_is_not_generated_is_one_lora_for_all_tasks(on: str) -> None:
    backbone, targets = BACKBONES[on]
    sites = backbone.sites("lora", targets)
    net = Hypernetwork(sites, D_MODEL, backbone.site_shape, PLAIN, generates=False)
    net.initialise(seeded(0))
    assert {name.split(".")[-1][:3] for name, _ in net.named_parameters()} == {"a0_", "b0_"}
    found = net(*instructions([5, 2]))
    assert all(not f.b.any() for f in found.values())
    for parameter in net.parameters():
        parameter.normal_(generator=seeded(1))
    found = net(*instructions([5, 2]))
    assert tuple(found) == sites
    for site, group, module, place in places(net):
        for task in range(2):
            assert torch.equal(found[site].a[task], getattr(group, f"a0_{place}")[module]), site
            assert torch.equal(found[site].b[task], getattr(group, f"b0_{place}")[module]), site


def test_initialisation_depends_on_the_seed_alone() -> None:
    one, same, other = (generator(PLAIN, seed=seed, trained=False) for seed in (0, 0, 1))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert not any(torch.equal(a0, other.a0[site]) for site, a0 in one.a0.items())


BASE = T5Shape(vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12)
XL = T5Shape(vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32)
SMOLLM2 = DecoderShape(
    vocab_size=49152,
    d_model=576,
    d_ff=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_positions=8192,
    rotary=Rotary(),
)


@pytest.mark.parametrize(
    ("shape", "config", "mlps", "total"),
    [
        pytest.param(BASE, HypernetworkConfig(hidden=128), 10.6e6, 12_446_208, id="base"),
        pytest.param(XL, HypernetworkConfig(hidden=256), 113e6, 122_996_736, id="xl"),
        pytest.param(SMOLLM2, HypernetworkConfig(hidden=128), 7.38e6, 8_517_120, id="smollm2"),
    ],
)
def test_parameter_count(shape: Shape, config: HypernetworkConfig, mlps: float, total: int) -> None:
    """MLPs (both layers of Eq. 2) as the design counts them, and all together with queries and embeddings."""
    with torch.device("meta"):
        backbone = build(shape)
        net = Hypernetwork(backbone.sites(), backbone.d_model, backbone.site_shape, config)
    in_mlps = sum(
        parameter.numel()
        for group in groups_of(net)
        for parameter in (group.inner, group.inner_bias, *group.head_a.values(), *group.head_b.values())
    )
    assert in_mlps == pytest.approx(mlps, rel=0.005)  # worst 0.0023: the design's figures have three digits
    assert parameter_count(net) == total


def assert_same(one: dict[Site, Factors], other: dict[Site, Factors]) -> None:
    for site, factors in one.items():
        assert torch.equal(factors.a, other[site].a), site
        assert torch.equal(factors.b, other[site].b), site
