"""Prefixes and bottleneck adapters: equal to their formulas in `transformers` on the same weights, neutral at first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from builders import (
    VOCABULARY,
    greedy,
    normal,
    seeded,
    small_decoder,
    small_t5,
    small_tagi,
    token_batch,
    trained,
    worst,
)
from tagi import methods
from tagi.backbones.base import Prepared
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Modules, Site
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5
from tagi.model.hypernetwork import Hypernetwork, ModuleGroup
from tagi.model.tagi import TagiModel

HEAD = 8
PARITY = 1e-5  # worst 1.2e-6, logits up to 4


def theirs(folder: Path) -> tuple[T5ForConditionalGeneration, T5]:
    """A random T5 of `transformers`, and ours with its weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=HEAD,
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


def logits_of(model: T5, ids: Tensor, mask: Tensor, target_ids: Tensor, modules: Modules, rows: Rows) -> Tensor:
    return model.score(ids, mask, target_ids, prepared=Prepared(rows.tasks, modules), rows=rows)


def with_prefix(prefix: Factors, module: Any, inputs: Any, out: Any) -> Any:
    """What `transformers`' self-attention gave, and softmax(q P_kᵀ) P_v head by head through its output matrix."""
    q, k, v = module.q(inputs[0]), prefix.a[0], prefix.b[0].T
    heads = [slice(start, start + HEAD) for start in range(0, q.shape[-1], HEAD)]
    mixed = [torch.softmax(q[..., one] @ k[:, one].T, dim=-1) @ v[:, one] for one in heads]
    return out[0] + module.o(torch.cat(mixed, dim=-1)), *out[1:]


def adapted(adapter: Factors, _module: object, _inputs: object, h: Any) -> Tensor:
    return h + adapter.scale * F.linear(F.relu(F.linear(h, adapter.a[0])), adapter.b[0])


@torch.no_grad()
def test_a_prefix_equals_its_formula_in_transformers(tmp_path: Path) -> None:
    """Attention to the prefix in a softmax of its own, beside attention to the tokens (LLaMA-Adapter)."""
    reference, ours = theirs(tmp_path)
    modules = random_modules(ours, tasks=1, places=("prefix",))
    for site, prefix in modules.items():
        stack, _, _ = site.kind.partition(".")
        layer = reference.get_submodule(f"{stack}.block.{site.layer}.layer.0.SelfAttention")
        layer.register_forward_hook(partial(with_prefix, prefix))
    ids, mask = token_batch([6, 4], seed=1)
    targets, _ = token_batch([5, 5], seed=2)
    expected = reference(input_ids=ids, attention_mask=mask, labels=targets).logits
    plain = logits_of(ours, ids, mask, targets, {}, Rows(1, 2))
    assert worst(plain, expected) > 0.1, "the prefix matters"  # measured 0.96
    assert worst(logits_of(ours, ids, mask, targets, modules, Rows(1, 2)), expected) < PARITY


def adapted_logits(model: TagiModel) -> tuple[Tensor, Tensor]:
    """Logits of two rows of each of two tasks, with what the model writes for them and without."""
    instruction = torch.randint(2, VOCABULARY, (2, 6), generator=seeded(4))
    adapter = model.adapt(instruction, torch.ones_like(instruction))
    assert {site.place for site in adapter.modules} - {"q", "v"} == set(model.method.writes) - {"lora"}
    batch = (*token_batch([6, 4, 5, 3], seed=1), token_batch([5] * 4, seed=2)[0], Rows(2, 4))
    one, other = (model.respond(each, *batch).logits for each in (adapter, replace(adapter, modules={})))
    return one, other


WRITERS = [one.name for one in methods.METHODS if one.writes]
T5_OR_DECODER = [
    *(pytest.param(small_t5, method, id=f"t5-{method}") for method in WRITERS),
    *(pytest.param(small_decoder, method, id=f"decoder-{method}") for method in WRITERS if method != "lora_fusion"),
]


def heads_of_b(model: TagiModel) -> Iterator[tuple[str, Tensor]]:
    for generator in model.generators:
        for group in cast("list[ModuleGroup]", list(cast(Hypernetwork, generator).groups)):
            yield from ((f"{generator.kind} {width}", head) for width, head in group.head_b.items())


@pytest.mark.parametrize(("backbone", "method"), T5_OR_DECODER)
def test_neutral_start_changes_no_bit_and_has_a_gradient(backbone: Callable[[], LanguageModel], method: str) -> None:
    """Whatever a method writes before it is trained leaves the language model as it is, and learns all the same."""
    model = small_tagi(method, backbone=backbone())
    found, bare = adapted_logits(model)
    assert torch.equal(found, bare)
    found.log_softmax(-1)[..., 3].sum().backward()
    for name, head in heads_of_b(model):
        assert head.grad is not None and head.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize(("backbone", "method"), T5_OR_DECODER)
def test_neutral_start_lets_the_whole_hypernetwork_learn_after_one_step(
    backbone: Callable[[], LanguageModel], method: str
) -> None:
    model = small_tagi(method, backbone=backbone())
    with torch.no_grad():
        for _, head in heads_of_b(model):
            head.fill_(1e-3)  # a step of AdamW at that rate
    adapted_logits(model)[0].log_softmax(-1)[..., 3].sum().backward()
    own = [pair for module in model.part("hypernetwork") for pair in module.named_parameters()]
    assert not [name for name, parameter in own if parameter.grad is None or not parameter.grad.any()]


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
    targets, _ = token_batch([5, 5], seed=2)
    expected = reference(input_ids=ids, attention_mask=mask, labels=targets).logits
    assert worst(logits_of(ours, ids, mask, targets, modules, Rows(1, 2)), expected) < PARITY


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
    targets, _ = token_batch([5, 5, 5], seed=2)
    together = logits_of(model, ids, mask, targets, modules, Rows.of(index, 2))
    for row, task in enumerate(index.tolist()):
        own = {site: Factors(f.a[[task]], f.b[[task]], f.scale) for site, f in modules.items()}
        one = slice(row, row + 1)
        alone = logits_of(model, ids[one], mask[one], targets[one], own, Rows(1, 1))
        assert worst(together[one], alone) < PARITY
        bare = logits_of(model, ids[one], mask[one], targets[one], {}, Rows(1, 1))
        assert worst(together[one], bare) > 0.1  # least measured 0.60


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        *((small_t5, method) for method in ("hypter", "hypertuning_prefix", "hint", "fid_icl")),
        *((small_decoder, method) for method in ("hypter", "hypertuning_prefix", "hint", "tagi")),
    ],
)
def test_greedy_tokens_are_the_most_likely_ones_of_a_single_pass(
    backbone: Callable[[], LanguageModel], method: str
) -> None:
    """Incremental decoding with everything that a method writes equals the whole sequence at once."""
    model = trained(small_tagi(method, backbone=backbone()))
    shape = (2, 3, 4) if method == "fid_icl" else (2, 6)
    instruction = torch.randint(2, VOCABULARY, shape, generator=seeded(4))
    adapter = model.adapt(instruction, torch.ones_like(instruction))
    ids, mask = token_batch([6, 4, 5, 3], seed=1)
    rows = Rows(2, 4)
    tokens = greedy(model, ids, mask, model.prepare(adapter), rows, 8)
    said = model.respond(adapter, ids, mask, tokens, rows).logits.argmax(-1)
    before_end = (tokens == 1).cumsum(1) - (tokens == 1).long() == 0
    assert before_end.sum() > 8
    assert torch.equal(said[before_end], tokens[before_end])
