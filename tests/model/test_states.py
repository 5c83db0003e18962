"""The generator that reads what the projections would have read of the instruction."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from families import ONE_EACH, TARGETS, VARIANTS, Variant, batch, pair, their_logits
from pydantic import ValidationError
from torch import Tensor

from builders import model_config, normal, save_checkpoint, seeded, small_decoder, small_t5, small_tagi, worst
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Site
from tagi.config import HypernetworkConfig, Target
from tagi.errors import ConfigError
from tagi.infer.engine import Tagi
from tagi.infer.looking import norms
from tagi.model import checkpoint
from tagi.model.states import GAIN, SMALLEST, StateGenerator
from tagi.model.tagi import TagiModel, neutral

STATES = HypernetworkConfig(rank=6, alpha=9.0, bias="learned", generator="states", target_modules=TARGETS)
READ = 2e-5  # worst 3.9e-6 over all variants
FORMULA = 1e-6  # of the largest number; worst 4.4e-8 (fp64 there, fp32 here)


def ready(method: str = "lora_only", backbone: Decoder | None = None, seed: int = 0) -> TagiModel:
    """As if it had been trained: no part of it is at its start."""
    made = small_tagi(method, hypernetwork=STATES, backbone=backbone or small_decoder())
    generator = seeded(seed + 5)
    with torch.no_grad():
        for parameter in generator_of(made).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        generator_of(made).observe(normal(50, *generator_of(made).mean.shape, seed=seed) * 2 + 1)
    return made


def generator_of(model: TagiModel) -> StateGenerator:
    assert isinstance(model.hypernetwork, StateGenerator)
    return model.hypernetwork


def targets_of(backbone: Decoder) -> tuple[Target, ...]:
    return TARGETS if backbone.shape.gated else tuple(one for one in TARGETS if one != "gate")


@contextmanager
def watched(model: Any, names: dict[Site, str]) -> Iterator[dict[Site, Tensor]]:
    """What the named modules of a `transformers` model are given while it runs."""
    seen: dict[Site, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, site=site: seen.update({site: given[0]}))
        for site, name in names.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
def test_parity_of_the_states_with_what_their_projections_read(variant: Variant) -> None:
    both = pair(variant)
    sites = [site for site in both.ours.sites("lora", targets_of(both.ours)) if both.ours.state(site) is not None]
    ids, mask = batch([9, 4], seed=0)
    read = both.ours.read(ids, mask, states=True)
    assert read.states is not None and read.states.shape == (2, 9, 4, both.ours.d_model)
    assert {both.ours.state(site) for site in sites} == {0, 1, 2, 3}
    with watched(both.theirs, {site: both.ours.site_name(site) for site in sites}) as seen:
        for row, real in enumerate(mask):
            their_logits(both.theirs, ids[row][real][None], torch.ones(1, int(real.sum())).bool())
            for site in sites:
                theirs = seen[site].reshape(-1, both.ours.d_model)
                assert worst(read.states[row, real, both.ours.state(site)], theirs) < READ, site


def test_nothing_is_kept_of_states_that_nobody_asked_for() -> None:
    ids, mask = batch([5], seed=0)
    assert small_decoder().read(ids, mask).states is None
    for method in ("lora_only", "tagi"):
        assert ready(method).adapt(ids, mask).instruction.states is None


def test_lora_is_the_formula() -> None:
    """Site by site, query by query, token by token, in double precision."""
    model = ready()
    own, backbone = generator_of(model), model.backbone
    ids, mask = batch([7, 3], seed=1)
    found, states = model.lora(model.adapt(ids, mask)), model.read(ids, mask).states
    assert states is not None
    weights, written = backbone.site_weights(), STATES.rank // 2
    for site, task in product(own.sites, range(2)):
        a, b = own.a_shared[site.place][site.layer].double(), own.b_shared[site.place][site.layer].double()
        place = backbone.state(site)
        if place is None:
            assert site.place in ("o", "down") and a.shape[0] == STATES.rank
        else:
            h = states[task, mask[task], place].double() - own.mean[place].double()
            for row in range(written):
                key = own.query[place, row].double()
                scores = torch.stack([key @ (token / own.deviation[place].double()) for token in h])
                u = sum(share * token for share, token in zip(scores.softmax(0), h, strict=True))
                b = torch.cat((b, (weights[site].double() @ u)[:, None]), dim=1)
            a = torch.cat((a, (own.a_own[site.place][site.layer] * own.gain[site.place][site.layer]).double()))
        assert worst(found[site].a[task].double(), a) == 0
        assert worst(found[site].b[task].double(), b) < FORMULA * float(b.detach().abs().max()), site
        assert found[site].scale == 1.5


@pytest.mark.parametrize("targets", [("q", "v"), ("up",), ("v", "up"), ("o", "k")])
def test_states_that_no_target_reads_are_left_out(targets: tuple[Target, ...]) -> None:
    """As if all were read and the others thrown away."""
    whole = ready()
    fewer = STATES.model_copy(update={"target_modules": targets})
    part = small_tagi("lora_only", hypernetwork=fewer, backbone=cast(Decoder, whole.backbone))
    own, all_ = generator_of(part), generator_of(whole)
    with torch.no_grad():
        for mine, theirs in ((own.query, all_.query), (own.mean, all_.mean), (own.deviation, all_.deviation)):
            mine.copy_(theirs[own.read])
        for name, mine in own.named_parameters():
            if name != "query":
                mine.copy_(all_.get_parameter(name))
    ids, mask = batch([7, 3], seed=1)
    every = whole.lora(whole.adapt(ids, mask))
    for site, factors in part.lora(part.adapt(ids, mask)).items():
        assert worst(factors.a, every[site].a) == 0 and worst(factors.b, every[site].b) < 1e-6, site
    states = whole.read(ids, mask).states
    assert states is not None
    own.observe(states.flatten(0, 1))
    assert worst(own.mean, states.flatten(0, 1).mean(0)[own.read]) < 1e-6


def test_padding_and_the_rest_of_the_batch_do_not_matter() -> None:
    model = ready()
    ids, mask = batch([8, 3, 5], seed=2)
    together = model.lora(model.adapt(ids, mask))
    for row in range(3):
        alone = model.lora(model.adapt(ids[row, mask[row]][None], mask[row, mask[row]][None]))
        for site, factors in together.items():
            assert worst(factors.b[row], alone[site].b[0]) < 1e-5  # worst 9.5e-7


@pytest.mark.parametrize("read", [True, False])
def test_without_an_instruction_the_shared_lora_is_left(read: bool) -> None:
    model = ready()
    own = generator_of(model)
    if read:
        adapter = model.adapt(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0))
    else:
        adapter = model.generate(neutral(model.backbone, 2).instruction, torch.zeros(2, 0, dtype=torch.long))
    found = model.lora(adapter)
    for site, shared in own.shared.items():
        rank = shared.a.shape[1]
        assert torch.equal(found[site].b[0, :, :rank], shared.b[0]) and not found[site].b[:, :, rank:].any()
        assert torch.equal(found[site].a[1, :rank], shared.a[0])


def test_at_the_start_it_is_a_little_beside_nothing() -> None:
    made = generator_of(small_tagi("lora_only", hypernetwork=STATES, backbone=small_decoder()))
    assert all(not b.any() for b in made.b_shared.values())
    assert all((gain == GAIN).all() for gain in made.gain.values())


@pytest.mark.parametrize("method", ["lora_only", "tagi"])
def test_every_part_of_it_learns(method: str) -> None:
    model = ready(method).requires_grad_(False)
    own = generator_of(model).requires_grad_(True)
    ids, mask = batch([7, 3], seed=1)
    inputs, present = batch([5, 5], seed=3)
    targets, _ = batch([4, 4], seed=4)
    model(ids, mask, inputs, present, targets, Rows(2, 2)).logits.square().sum().backward()
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_it_observes_are_the_mean_and_the_deviation() -> None:
    own = generator_of(ready())
    states = normal(40, *own.mean.shape, seed=9) * 3 - 2
    own.observe(states)
    assert worst(own.mean, states.mean(0)) < 1e-6 and worst(own.deviation, states.std(0) + SMALLEST) < 1e-6


def test_a_checkpoint_brings_back_every_number(tmp_path: Path) -> None:
    model = ready()
    config = model_config(model).model_copy(update={"hypernetwork": STATES})
    save_checkpoint(model, config, tmp_path / "c")
    again = checkpoint.load(tmp_path / "c").model
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert "hypernetwork.mean" in checkpoint.own_tensors(model)


def test_the_heat_map_shows_what_is_written_from_the_instruction() -> None:
    model = ready()
    ids, mask = batch([7], seed=1)
    adapter = model.adapt(ids, mask)

    found = norms(cast(Tagi, SimpleNamespace(model=model)), adapter)
    assert found.beyond_shared
    for site, norm in found.by_site.items():
        own = model.lora(adapter)[site]
        shared = generator_of(model).shared[site]
        whole = own.scale * (own.b[0] @ own.a[0] - shared.b[0] @ shared.a[0]).detach().norm()
        assert norm == pytest.approx(float(whole), rel=1e-4, abs=1e-5)
        assert (norm > 1e-3) == (site.place not in ("o", "down"))


def test_bad_settings() -> None:
    for update, words in (({"rank": 5}, "an even rank"), ({"bias": "fixed"}, "bias: learned")):
        with pytest.raises(ValidationError, match=words):
            HypernetworkConfig.model_validate(STATES.model_dump() | update)
    with pytest.raises(ConfigError, match=r"^hypernetwork.generator: states are read in decoder-only models; "):
        small_tagi("tagi", hypernetwork=STATES.model_copy(update={"target_modules": ("q", "v")}), backbone=small_t5())
    with pytest.raises(ConfigError, match=r"^hypernetwork.target_modules: \('o',\) read no states"):
        small_tagi(
            "lora_only", hypernetwork=STATES.model_copy(update={"target_modules": ("o",)}), backbone=small_decoder()
        )
    with pytest.raises(ConfigError, match=r"^bank: hypernetwork.generator states has no A₀"):
        generator_of(ready()).start_from({})
    with pytest.raises(ValueError, match="no states of an instruction"):
        small_t5().read(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2), states=True)


def test_every_family_is_adapted() -> None:
    for variant in ONE_EACH:
        backbone = pair(variant).ours
        config = STATES.model_copy(update={"target_modules": targets_of(backbone)})
        model = small_tagi("lora_only", hypernetwork=config, backbone=backbone)
        ids, mask = batch([7, 3], seed=1)
        assert {own.rank for own in model.lora(model.adapt(ids, mask)).values()} == {STATES.rank}
