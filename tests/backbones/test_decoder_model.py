"""A decoder-only model apart from its numbers: the protocol, random initialisation, a reader of its own."""

import copy
import math

import pytest
import torch
from torch import nn

from builders import seeded, small_decoder, token_batch
from tagi.backbones.base import Backbone
from tagi.backbones.decoder.model import Decoder, initialise
from tagi.backbones.encoded import EncodedInstruction
from tagi.config import DecoderShape, Learned, Rotary

WIDE = DecoderShape(
    vocab_size=2000,
    d_model=256,
    d_ff=512,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    max_positions=128,
    rotary=Rotary(),
)
OPT = WIDE.model_copy(
    update={
        "rotary": None,
        "learned": Learned(offset=2),
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tied": False,
        "norm": "layer",
        "d_embedding": 128,
    }
)


def test_a_decoder_is_a_backbone() -> None:
    """The annotation is the test: the type checker refuses it when the model leaves the protocol."""
    backbone: Backbone = small_decoder()
    sites = backbone.sites()
    assert len(sites) == len(set(sites)) == 2 * 2
    assert [site.place for site in sites] == ["q", "v"] * 2
    assert [backbone.site_shape(site) for site in sites] == [(32, 24), (32, 12)] * 2
    assert [len(backbone.sites(kind)) for kind in ("prefix", "bottleneck")] == [2, 2]
    assert not backbone.has_encoder and (backbone.max_positions, backbone.end_ids) == (128, (1,))


@torch.no_grad()
@pytest.mark.parametrize("shape", [WIDE, OPT], ids=["llama", "opt"])
def test_initialise_draws_every_matrix_by_its_fan_in(shape: DecoderShape) -> None:
    """And those that write into the residual stream by the depth: 4 sublayers add up in it."""
    model = Decoder(shape)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()  # as they are made
    initialise(model, seeded(0))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            expected = 0.02
        elif isinstance(module, nn.Linear):
            residual = name.rpartition(".")[2] in ("o", "down")
            expected = math.sqrt(1 / module.in_features) * (math.sqrt(1 / 4) if residual else 1.0)
            assert module.bias is None or not module.bias.any(), name
        else:
            continue
        # the least matrix has 8,192 values: the standard error of their deviation is 0.8 %, worst measured 1.4 %
        assert float(module.weight.std()) == pytest.approx(expected, rel=0.04), name
        assert abs(float(module.weight.mean())) < 0.05 * expected, name
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_initialise_depends_on_the_seed_alone() -> None:
    one, same, other = (small_decoder(seed) for seed in (0, 0, 1))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


@torch.no_grad()
def test_a_reader_starts_as_a_copy_and_shares_no_tensor() -> None:
    model = small_decoder()
    instruction = token_batch([5, 3], seed=0)
    reader = model.reader()
    before = reader.read(*instruction)
    expected = copy.deepcopy(model).read(*instruction)
    assert torch.equal(before.hidden, expected.hidden)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(reader.read(*instruction).hidden, before.hidden)


@torch.no_grad()
def test_an_instruction_of_padding_alone_is_attended_to_by_none() -> None:
    model = small_decoder()
    ids, mask = token_batch([4, 2], seed=0)
    for empty in (model.read(ids, torch.zeros_like(mask)), model.read(ids[:, :0], mask[:, :0])):
        assert isinstance(empty, EncodedInstruction) and empty.attended is None
        assert model.prepare(empty, {}).attended is None
    some = model.read(ids, mask & torch.tensor([[True], [False]])).attended
    assert some is not None and some.start.tolist() == [4, 0]
