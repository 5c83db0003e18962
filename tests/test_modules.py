"""Prefixes and bottleneck adapters: equal to PEFT and to their formulas on the same weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from builders import VOCABULARY, greedy, normal, seeded, small_t5, small_tagi, token_batch, trained, worst
from tagi.model.backbone import Factors, Modules, Site
from tagi.model.rows import Rows
from tagi.model.t5 import T5
from tagi.model.t5_hf import load_t5
from tagi.model.tagi import shift_right

PREFIX = 3
PARITY = 1e-5  # worst 1.0e-6, logits up to 9


def theirs(folder: Path) -> tuple[T5ForConditionalGeneration, T5]:
    """A random T5 of `transformers`, and ours with its weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model, load_t5(folder).eval()


def logits_of(model: T5, ids: Tensor, mask: Tensor, decoder_ids: Tensor, modules: Modules, rows: Rows) -> Tensor:
    hidden = model.encode(ids, mask, modules=modules, rows=rows)
    context = model.context(hidden, mask, modules=modules, rows=rows, memory=None)
    return model.decode(decoder_ids, context, modules=modules, rows=rows)[0]


def flat(x_RHLK: Tensor) -> Tensor:
    """(1, H, r, K) -> (1, r, H·K)."""
    return x_RHLK.transpose(1, 2).flatten(-2)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@torch.no_grad()
def test_a_decoder_s_prefix_equals_peft_s(tmp_path: Path) -> None:
    """PEFT puts prefixes before the decoder's self-attention only."""
    reference, ours = theirs(tmp_path)
    tuned = get_peft_model(reference, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PREFIX)).eval()
    cache = tuned.get_prompt(1).self_attention_cache.layers  # type: ignore[operator]
    modules = {
        Site("decoder.self", i, "prefix"): Factors(flat(layer.keys), flat(layer.values).transpose(1, 2), 1.0)
        for i, layer in enumerate(cache)
    }
    ids, mask = token_batch([6, 4], seed=1)
    decoder_ids, _ = token_batch([5, 5], seed=2)
    expected = tuned(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    plain = logits_of(ours, ids, mask, decoder_ids, {}, Rows(1, 2))
    assert worst(plain, expected) > 100 * PARITY, "the prefix matters"
    assert worst(logits_of(ours, ids, mask, decoder_ids, modules, Rows(1, 2)), expected) < PARITY


def keep(kept: list[Tensor], _module: object, _inputs: object, out: Tensor) -> None:
    kept.append(out[:, :PREFIX])


def adapted(adapter: Factors, _module: object, _inputs: object, h: Any) -> Tensor:
    return h + adapter.scale * F.linear(F.relu(F.linear(h, adapter.a[0])), adapter.b[0])


@torch.no_grad()
def test_an_encoder_s_prefix_of_real_tokens_equals_those_tokens(tmp_path: Path) -> None:
    """The keys and values that `transformers` computes for tokens, as a prefix of the tokens that stand behind them."""
    reference, ours = theirs(tmp_path)
    ids, _ = token_batch([PREFIX + 5], seed=3)
    kept: dict[str, list[Tensor]] = {"k": [], "v": []}
    for name in kept:
        for i in range(2):
            projection = reference.get_submodule(f"encoder.block.{i}.layer.0.SelfAttention.{name}")
            projection.register_forward_hook(partial(keep, kept[name]))
    expected = reference.encoder(input_ids=ids).last_hidden_state[:, PREFIX:]
    modules = {
        Site("encoder.self", i, "prefix"): Factors(k, v.transpose(1, 2), 1.0)
        for i, (k, v) in enumerate(zip(kept["k"], kept["v"], strict=True))
    }
    rest = ids[:, PREFIX:]
    found = ours.encode(rest, torch.ones_like(rest), modules=modules, rows=Rows(1, 1))
    assert worst(found, expected) < PARITY


@torch.no_grad()
def test_a_bottleneck_equals_its_formula_in_transformers(tmp_path: Path) -> None:
    """h + W_up relu(W_down h) of what the feed-forward layer gives, before the residual (Houlsby et al. 2019)."""
    reference, ours = theirs(tmp_path)
    modules = random_modules(ours, tasks=1, places=("bottleneck",))
    for site, adapter in modules.items():
        stack, _, _ = site.kind.partition(".")
        last = 1 if stack == "encoder" else 2
        layer = reference.get_submodule(f"{stack}.block.{site.layer}.layer.{last}.DenseReluDense")
        layer.register_forward_hook(partial(adapted, adapter))
    ids, mask = token_batch([6, 4], seed=1)
    decoder_ids, _ = token_batch([5, 5], seed=2)
    expected = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    assert worst(logits_of(ours, ids, mask, decoder_ids, modules, Rows(1, 2)), expected) < PARITY


def random_modules(model: T5, tasks: int, places: Sequence[str]) -> dict[Site, Factors]:
    sites = [site for kind in ("prefix", "bottleneck") for site in model.sites(kind) if site.place in places]
    modules: dict[Site, Factors] = {}
    for number, site in enumerate(sites):
        width_in, width_out = model.site_shape(site)
        a, b = normal(tasks, 4, width_in, seed=2 * number), normal(tasks, width_out, 4, seed=2 * number + 1)
        modules[site] = Factors(a, b * 0.3, 1.0 if site.place == "prefix" else 2.0)
    return modules


@torch.no_grad()
@pytest.mark.parametrize("place", ["prefix", "bottleneck"])
def test_rows_of_different_tasks_equal_each_task_alone(place: str) -> None:
    model, index = small_t5(), torch.tensor([1, 0, 1])
    modules = random_modules(model, 2, (place,))
    ids, mask = token_batch([6, 4, 5], seed=1)
    decoder_ids, _ = token_batch([5, 5, 5], seed=2)
    together = logits_of(model, ids, mask, decoder_ids, modules, Rows.of(index, 2))
    for row, task in enumerate(index.tolist()):
        own = {site: Factors(f.a[[task]], f.b[[task]], f.scale) for site, f in modules.items()}
        one = slice(row, row + 1)
        alone = logits_of(model, ids[one], mask[one], decoder_ids[one], own, Rows(1, 1))
        assert worst(together[one], alone) < PARITY
        assert worst(together[one], logits_of(model, ids[one], mask[one], decoder_ids[one], {}, Rows(1, 1))) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("method", ["hypter", "hypertuning_prefix", "hint", "fid_icl"])
def test_greedy_tokens_are_the_most_likely_ones_of_a_single_pass(method: str) -> None:
    """Incremental decoding with everything that a method writes equals the whole sequence at once."""
    model = trained(small_tagi(method))
    shape = (2, 3, 4) if method == "fid_icl" else (2, 6)
    instruction = torch.randint(2, VOCABULARY, shape, generator=seeded(4))
    prepared = model.prepare(model.adapt(instruction, torch.ones_like(instruction)))
    ids, mask = token_batch([6, 4, 5, 3], seed=1)
    rows = Rows(2, 4)
    tokens = greedy(model, ids, mask, prepared, rows, 8)
    decoder_ids = shift_right(tokens, 0, 0)
    output = model.respond(prepared.adapter, ids, mask, decoder_ids, rows)
    said = output.logits.argmax(-1)
    before_end = (tokens == 1).cumsum(1) - (tokens == 1).long() == 0
    assert before_end.sum() > 8
    assert torch.equal(said[before_end], tokens[before_end])
