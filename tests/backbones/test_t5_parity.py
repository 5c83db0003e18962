"""Our T5 against `transformers`: logits, gradients, padding, caching, greedy decoding, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from builders import VOCABULARY, greedy, normal, seeded, small_shape, token_batch, worst
from tagi import methods
from tagi.backbones.attention import attend, biased_scores, relative_bucket, softmax
from tagi.backbones.base import Backbone, Prepared
from tagi.backbones.cache import KeyValue, Past
from tagi.backbones.rows import Rows
from tagi.backbones.t5.blocks import Attention
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5, save_t5, tensor_names
from tagi.config import FusionConfig, HypernetworkConfig
from tagi.model.tagi import TagiModel, neutral

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
UNEVEN: dict[str, Any] = {"num_layers": 3, "num_decoder_layers": 1, "num_heads": 3, "d_kv": 5}
GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5Family = T5ForConditionalGeneration | MT5ForConditionalGeneration

# Each bound is a small multiple of the worst difference seen over all variants (fp32, CPU, logits up to 27).
LOGITS = 5e-5  # worst 9.5e-6
GRADIENTS = 1e-5  # worst 2.0e-6 of the largest entry of the tensor's gradient
PADDING = 5e-5  # worst 1.1e-5
INCREMENTAL = 5e-5  # worst 1.0e-5
BFLOAT16 = 0.05  # worst 0.02 of the largest logit


@dataclass(frozen=True)
class Variant:
    """One member of the family: its config, and whether the output projection is a matrix of its own."""

    name: str
    config: T5Config | MT5Config
    untied: bool

    def build(self) -> T5Family:
        torch.manual_seed(0)
        model, generator = _random(self.config), seeded(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layer_norm" in name:
                    parameter.uniform_(0.5, 1.5, generator=generator)
        if self.untied:
            model.lm_head.weight = nn.Parameter(normal(VOCABULARY, self.config.d_model, seed=2))
        return model.eval()


def _random(config: T5Config | MT5Config) -> T5Family:
    if isinstance(config, MT5Config):
        return MT5ForConditionalGeneration(config)
    return T5ForConditionalGeneration(config)


VARIANTS = (
    Variant("v1.0", T5Config(**BASE), untied=False),
    Variant("v1.0-uneven", T5Config(**BASE | UNEVEN), untied=False),
    Variant("v1.1", T5Config(**BASE | GATED), untied=True),
    Variant("v1.1-uneven", T5Config(**BASE | UNEVEN | GATED), untied=True),
    Variant("mt5", MT5Config(**BASE | GATED), untied=True),
    Variant("mt5-tied", MT5Config(**BASE | GATED), untied=False),
)


@dataclass(frozen=True)
class Pair:
    """The same weights in `transformers` and in our T5, and the folder that both read."""

    theirs: T5Family
    ours: T5
    folder: Path
    variant: Variant


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("t5")
    theirs = request.param.build()
    theirs.save_pretrained(folder)
    return Pair(theirs, load_t5(folder).eval(), folder, request.param)


BARE = Prepared(1, {})


def logits_of(model: T5, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
    return model.score(ids, mask, target_ids, prepared=BARE, rows=Rows(1, len(ids)))


def their_logits(pair: Pair, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
    return pair.theirs(input_ids=ids, attention_mask=mask, labels=target_ids).logits


def test_shape_is_read_from_config_and_tensors(pair: Pair) -> None:
    shape, config = pair.ours.shape, pair.variant.config
    assert shape.tied is not pair.variant.untied
    assert shape.scale_outputs is pair.variant.name.startswith("v1.0")
    assert (shape.num_layers, shape.num_decoder_layers) == (config.num_layers, config.num_decoder_layers)
    assert (shape.activation, shape.gated) == (config.dense_act_fn, config.is_gated_act)


def test_logits(pair: Pair) -> None:
    ids, mask = token_batch([25, 7, 18], seed=0)
    targets, _ = token_batch([20, 20, 20], seed=1)
    expected = their_logits(pair, ids, mask, targets)
    assert worst(logits_of(pair.ours, ids, mask, targets), expected) < LOGITS


def test_gradient_of_every_parameter(pair: Pair) -> None:
    ids, mask = token_batch([9, 14], seed=0)
    targets, _ = token_batch([6, 6], seed=1)
    labels, _ = token_batch([6, 6], seed=2)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    for logits in (their_logits(pair, ids, mask, targets), logits_of(pair.ours, ids, mask, targets)):
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    names = tensor_names(pair.ours.shape)
    assert {name for name, _ in pair.ours.named_parameters()} == names.keys()
    for ours, theirs in names.items():
        gradient = pair.theirs.get_parameter(theirs).grad
        found = pair.ours.get_parameter(ours).grad
        assert gradient is not None and found is not None, ours
        assert gradient.abs().max() > 0, ours
        assert worst(found / gradient.abs().max(), gradient / gradient.abs().max()) < GRADIENTS, ours


def test_padded_rows_equal_unpadded_rows(pair: Pair) -> None:
    lengths = [3, 17, 9]
    ids, mask = token_batch(lengths, seed=0)
    targets, _ = token_batch([8, 8, 8], seed=1)
    batched = logits_of(pair.ours, ids, mask, targets)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = logits_of(pair.ours, ids[one, :length], mask[one, :length], targets[one])
        assert worst(batched[row : row + 1], alone) < PADDING


def test_content_of_padding_changes_no_bit(pair: Pair) -> None:
    ids, mask = token_batch([3, 17, 9], seed=0)
    targets, _ = token_batch([8, 8, 8], seed=1)
    other = torch.where(mask, ids, 7)
    assert torch.equal(logits_of(pair.ours, ids, mask, targets), logits_of(pair.ours, other, mask, targets))


@pytest.mark.parametrize("chunks", [[1] * 20, [3, 1, 9, 7]], ids=["one by one", "in chunks"])
def test_incremental_decoding_equals_full_decoding(pair: Pair, chunks: list[int]) -> None:
    ids, mask = token_batch([12, 5], seed=0)
    decoder_ids, _ = token_batch([20, 20], seed=1)
    rows = Rows(1, 2)
    inputs = pair.ours.inputs(ids, mask, BARE, rows)
    past: Past | None = None
    parts: list[Tensor] = []
    for chunk in decoder_ids.split(chunks, dim=1):
        logits, read = pair.ours.decode(chunk, inputs, BARE, rows, past=past)
        past = Past(read, chunk.shape[1]) if past is None else past.after(read)
        parts.append(logits)
    full, layers = pair.ours.decode(decoder_ids, inputs, BARE, rows)
    assert worst(torch.cat(parts, dim=1), full) < INCREMENTAL
    assert past is not None
    assert past.layers[0].k.shape == layers[0].k.shape


def test_targets_are_read_behind_the_start_token_of_the_config(pair: Pair) -> None:
    ids, mask = token_batch([12, 5], seed=0)
    targets, _ = token_batch([4, 4], seed=1)
    other = T5(pair.ours.shape.model_copy(update={"decoder_start_token_id": 9}))
    other.load_state_dict(pair.ours.state_dict())
    before = targets.clone()
    behind = F.pad(targets[:, :-1], (1, 0), value=9)
    expected = pair.theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=behind).logits
    assert worst(logits_of(other.eval(), ids, mask, targets), expected) < LOGITS
    assert torch.equal(targets, before), "the targets themselves stay as they are"


@pytest.mark.parametrize("room", [0, 3, 20])
def test_steps_equal_one_pass(pair: Pair, room: int) -> None:
    ids, mask = token_batch([12, 5, 9], seed=0)
    targets, _ = token_batch([7, 7, 7], seed=1)
    logits, cache = pair.ours.begin(ids, mask, prepared=BARE, rows=Rows(1, 3), room=room)
    steps = [logits]
    for token in targets[:, :-1].T:
        logits, cache = pair.ours.step(token, cache)
        steps.append(logits)
    assert worst(torch.stack(steps, dim=1), logits_of(pair.ours, ids, mask, targets)) < INCREMENTAL


def test_targets_that_share_an_input_equal_each_with_its_own(pair: Pair) -> None:
    ids, mask = token_batch([12, 5, 9], seed=0)
    targets, _ = token_batch([7, 7, 7, 7], seed=1)
    owner = torch.tensor([2, 0, 0, 2])
    found = pair.ours.score(ids, mask, targets, prepared=BARE, rows=Rows(1, 3), owner=owner)
    assert worst(found, logits_of(pair.ours, ids[owner], mask[owner], targets)) < PADDING


def test_greedy_tokens_equal_generate(pair: Pair) -> None:
    ids, mask = token_batch([12, 5, 9, 1], seed=3)
    assert torch.equal(our_tokens(pair, ids, mask, eos=1), their_tokens(pair, ids, mask, eos=1))


def test_greedy_stops_each_row_at_its_own_end(pair: Pair) -> None:
    """The end of sequence is chosen among the tokens that come, so that rows end at different steps."""
    ids, mask = token_batch([12, 5, 9, 1], seed=3)
    free = their_tokens(pair, ids, mask, eos=1)
    eos = int(free[0, 2])
    expected = their_tokens(pair, ids, mask, eos=eos)
    assert (expected[0] == 0).any(), "row 0 should have ended early"
    assert torch.equal(our_tokens(pair, ids, mask, eos=eos), expected)


def our_tokens(pair: Pair, ids: Tensor, mask: Tensor, *, eos: int) -> Tensor:
    backbone = T5(pair.ours.shape.model_copy(update={"eos_token_ids": (eos,)}))
    backbone.load_state_dict(pair.ours.state_dict())
    model = TagiModel(backbone, methods.get("metatrain"), HypernetworkConfig(), FusionConfig()).eval()
    prepared = model.prepare(neutral(backbone, 1))
    tokens = greedy(model, ids, mask, prepared, Rows(1, len(ids)), 12)
    return F.pad(tokens, (0, 12 - tokens.shape[1]))


def their_tokens(pair: Pair, ids: Tensor, mask: Tensor, *, eos: int) -> Tensor:
    model: Any = pair.theirs
    tokens: Tensor = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=eos, pad_token_id=0
    )
    return F.pad(tokens[:, 1:], (0, 13 - tokens.shape[1]))


def test_saved_folder_opens_in_transformers_bit_equal(pair: Pair, tmp_path: Path) -> None:
    save_t5(pair.ours, tmp_path)
    reopened = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = pair.theirs.state_dict()
    assert reopened.state_dict().keys() == expected.keys()
    for name, tensor in reopened.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids, mask = token_batch([9, 4], seed=0)
    arguments = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}
    assert torch.equal(reopened(**arguments).logits, pair.theirs(**arguments).logits)


def test_load_of_saved_folder_is_the_same_model(pair: Pair, tmp_path: Path) -> None:
    save_t5(pair.ours, tmp_path)
    again = load_t5(tmp_path)
    assert again.shape == pair.ours.shape
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, pair.ours.state_dict()[name]), name


def test_sharded_folder_loads_the_same_tensors(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for name, tensor in load_t5(tmp_path).state_dict().items():
        assert torch.equal(tensor, pair.ours.state_dict()[name]), name


def test_bfloat16_agrees_to_its_own_precision(pair: Pair) -> None:
    ids, mask = token_batch([9, 4], seed=0)
    half = T5(pair.ours.shape).to(torch.bfloat16).eval()
    half.load_state_dict(pair.ours.state_dict())
    exact = logits_of(pair.ours, ids, mask, ids)
    found = logits_of(half, ids, mask, ids)
    assert found.dtype == torch.bfloat16
    assert worst(found.float() / exact.abs().max(), exact / exact.abs().max()) < BFLOAT16


def test_a_softmax_of_bfloat16_is_that_of_fp32_rounded_once() -> None:
    scores = (10 * normal(3, 4, 37, 70, seed=0)).to(torch.bfloat16)
    assert torch.equal(softmax(scores), F.softmax(scores, dim=-1, dtype=torch.float32).to(torch.bfloat16))


@pytest.mark.parametrize("bias", [(2, 4, 5, 9), (1, 4, 5, 9), (2, 1, 1, 9), (1,)])
def test_scores_and_bias_are_one_product(bias: tuple[int, ...]) -> None:
    """Worst difference to the product and then the sum: none in 200 cases, of scores up to 16."""
    q, k, added = normal(2, 4, 5, 6, seed=0), normal(2, 4, 9, 6, seed=1), normal(*bias, seed=2)
    assert worst(biased_scores(q, k, added), q @ k.transpose(-1, -2) + added) < 1e-5


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 16), (6, 20)])
def test_relative_buckets(bidirectional: bool, buckets: int, max_distance: int) -> None:
    distance = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, max_distance)
    ours = relative_bucket(distance, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
    assert torch.equal(ours, expected)


def test_t5_is_a_backbone() -> None:
    """The annotation is the test: the type checker refuses it when T5 leaves the protocol."""
    backbone: Backbone = T5(small_shape())
    sites = backbone.sites()
    assert len(sites) == len(set(sites)) == 2 * (2 + 2 * 2)
    assert [site.place for site in sites] == ["q", "v"] * 6
    assert backbone.site_shape(sites[0]) == (32, 24)


def test_training_drops_attention_weights_and_inference_does_not() -> None:
    """T5 drops attention weights too, by the rate of its config."""
    model = T5(small_shape(dropout_rate=0.5)).eval()
    module = next(m for m in model.modules() if isinstance(m, Attention))
    assert module.weight_dropout == 0.0
    assert module.train().weight_dropout == 0.5
    q, own = normal(2, 4, 3, 6, seed=0), KeyValue(normal(2, 4, 400, 6, seed=1) * 0, torch.ones(2, 4, 400, 6))
    torch.manual_seed(0)
    kept = attend(q, own, torch.zeros(1), 0.5)
    assert torch.equal(attend(q, own, torch.zeros(1), 0.0), attend(q, own, torch.zeros(1)))
    # scaled up by 1 / (1 - p), so the mean stays: 0.990 measured, its standard error is 0.05 / √24 (rows of all heads)
    assert 0.95 < float(kept.mean()) < 1.05
    assert 0.03 < float(kept.std()) < 0.07  # 0.051 measured: 1 / √400, of as many weights at p = 0.5


def test_parameters_stand_in_the_order_that_optimizer_states_were_saved_in() -> None:
    """Adam's moments of a run that is resumed are matched by place."""
    parts = dict.fromkeys(name.split(".")[0] for name, _ in T5(small_shape(tied=False)).named_parameters())
    tables = ["encoder_position", "decoder_position", "encoder_norm", "decoder_norm"]
    assert list(parts) == ["embedding", "encoder", "decoder", *tables, "output"]
