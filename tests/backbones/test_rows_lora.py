"""Rows and LoRA against loops over rows, and LoRA in the whole T5 against `peft`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from builders import VOCABULARY, normal, random_lora, seeded, small_t5, token_batch, worst
from tagi.backbones import lora
from tagi.backbones.base import Prepared
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5

PROJECT = 1e-5  # worst 1.4e-6, values up to 13
PEFT = 1e-5  # worst 1.2e-6, logits up to 4
MERGED = 1e-6  # worst 0: the same bits

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's


def integers(*size: int, seed: int) -> Tensor:
    """Small whole numbers as floats: their products and sums are exact in any order."""
    return torch.randint(-4, 5, size, generator=seeded(seed)).float()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Rows, list[int]]:
    """Rows in any layout, and the task of every row in plain words."""
    tasks = draw(st.integers(1, 4))
    if draw(st.booleans()):
        each = draw(st.integers(1, 3))
        return Rows(tasks, tasks * each), [task for task in range(tasks) for _ in range(each)]
    owner = draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=6))
    build: Callable[[Tensor, int], Rows] = draw(
        st.sampled_from((Rows.of, lambda index, tasks: Rows(tasks, len(index), index)))
    )
    return build(torch.tensor(owner), tasks), owner


@given(
    layouts(),
    st.lists(st.integers(1, 3), max_size=2),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
)
def test_matmul_equals_one_product_per_row(
    layout: tuple[Rows, list[int]], between: list[int], sides: tuple[int, int, int]
) -> None:
    (rows, owner), (length, i, j) = layout, sides
    x = integers(len(owner), *between, length, i, seed=0)
    w = integers(rows.tasks, *between, i, j, seed=1)
    expected = torch.stack([x[row] @ w[task] for row, task in enumerate(owner)])
    assert torch.equal(rows.matmul(x, w), expected)


@given(layouts(), st.lists(st.integers(0, 3), max_size=3))
def test_pick_repeats_each_tasks_entry(layout: tuple[Rows, list[int]], size: list[int]) -> None:
    rows, owner = layout
    x = integers(rows.tasks, *size, seed=0)
    assert torch.equal(rows.pick(x), torch.stack([x[task] for task in owner]))


@given(layouts())
def test_gradient_of_matmul_reaches_the_rows_own_task(layout: tuple[Rows, list[int]]) -> None:
    rows, owner = layout
    x = integers(len(owner), 2, 3, seed=0)
    w = integers(rows.tasks, 3, 2, seed=1).requires_grad_()
    rows.matmul(x, w).sum().backward()
    expected = torch.zeros_like(w)
    for row, task in enumerate(owner):
        expected[task] += x[row].sum(0)[:, None]
    assert w.grad is not None
    assert torch.equal(w.grad, expected)


@pytest.mark.parametrize(
    ("owner", "tasks", "grouped"),
    [
        ([0, 0, 0], 1, True),
        ([0, 1, 2], 3, True),
        ([0, 0, 1, 1], 2, True),
        ([0, 1, 0, 1], 2, False),
        ([0, 0, 1], 2, False),
        ([1, 1], 2, False),
    ],
)
def test_of_recognises_equal_consecutive_groups(owner: list[int], tasks: int, grouped: bool) -> None:
    assert (Rows.of(torch.tensor(owner), tasks).index is None) is grouped


def test_groups_of_unequal_size_need_an_index() -> None:
    with pytest.raises(ValueError, match="5 rows are no 2 groups of equal size"):
        Rows(2, 5)


@given(layouts(), st.integers(1, 3))
def test_project_equals_the_literal_formula(layout: tuple[Rows, list[int]], rank: int) -> None:
    rows, owner = layout
    x, weight = normal(len(owner), 2, 5, seed=0), normal(4, 5, seed=1)
    factors = Factors(normal(rows.tasks, rank, 5, seed=2), normal(rows.tasks, 4, rank, seed=3), 0.5)
    expected = torch.stack(
        [
            torch.einsum("li,ji->lj", x[row], weight + 0.5 * factors.b[task] @ factors.a[task])
            for row, task in enumerate(owner)
        ]
    )
    assert worst(lora.project(x, weight, factors, rows), expected) < PROJECT


def test_project_with_b_zero_changes_no_bit() -> None:
    x, weight = normal(4, 3, 5, seed=0), normal(6, 5, seed=1)
    factors = Factors(normal(2, 3, 5, seed=2), torch.zeros(2, 6, 3), 2.0)
    for rows in (Rows(2, 4), Rows.of(torch.tensor([1, 0, 0, 1]), 2)):
        assert torch.equal(lora.project(x, weight, factors, rows), lora.project(x, weight, None, rows))


def test_delta_is_scale_times_b_a() -> None:
    factors = Factors(integers(2, 3, 5, seed=0), integers(2, 4, 3, seed=1), 0.5)
    for task in range(2):
        expected = torch.zeros(4, 5)
        for rank in range(3):
            expected += 0.5 * torch.outer(factors.b[task, :, rank], factors.a[task, rank])
        assert torch.equal(lora.delta(factors)[task], expected)


def test_stack_then_select_gives_every_lora_back() -> None:
    t5 = small_t5()
    loras = [random_lora(t5, 1, seed=100 * i) for i in range(3)]
    stacked = lora.stack(list(loras))
    for task, expected in enumerate(loras):
        chosen = lora.select(stacked, torch.tensor([task]))
        assert chosen.keys() == expected.keys()
        for site, factors in expected.items():
            assert torch.equal(chosen[site].a, factors.a)
            assert torch.equal(chosen[site].b, factors.b)
            assert chosen[site].scale == factors.scale


def test_loras_of_other_sites_or_scales_do_not_stack() -> None:
    t5 = small_t5()
    one, other = random_lora(t5, 1, seed=0), random_lora(t5, 1, seed=1, scale=1.0)
    with pytest.raises(ValueError, match="different kinds or scales"):
        lora.stack([one, other])
    with pytest.raises(ValueError, match="different sites"):
        lora.stack([one, {}])


RANK, ALPHA = 3, 6


@pytest.fixture(scope="module")
def peft_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, T5, dict[Site, Factors]]:
    """A `transformers` T5 with peft's LoRA on q and v, and the same weights and factors for ours."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_heads=4)
    config.decoder_start_token_id = 0
    base = T5ForConditionalGeneration(config)
    base.save_pretrained(folder)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q", "v"], init_lora_weights=False)
    theirs: Any = get_peft_model(base, settings).eval()  # pyright: ignore[reportArgumentType]
    ours = load_t5(folder).eval()
    modules = dict(theirs.base_model.model.named_modules())
    factors = {site: factors_of(modules[ours.site_name(site)]) for site in ours.sites()}
    return theirs, ours, factors


def factors_of(module: Any) -> Factors:
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    return Factors(a.detach()[None], b.detach()[None], ALPHA / RANK)


def our_logits(model: T5, applied: dict[Site, Factors], ids: Tensor, mask: Tensor) -> Tensor:
    return model.score(ids, mask, ids, prepared=Prepared(1, applied), rows=Rows(1, len(ids)))


def test_lora_equals_peft(peft_pair: tuple[Any, T5, dict[Site, Factors]]) -> None:
    theirs, ours, factors = peft_pair
    ids, mask = token_batch([11, 4], seed=0)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=ids).logits
    assert worst(our_logits(ours, factors, ids, mask), expected) < PEFT
    assert worst(our_logits(ours, {}, ids, mask), expected) > 0.1, "the LoRA should move the logits"  # measured 3.1


def test_merging_equals_peft_merging(peft_pair: tuple[Any, T5, dict[Site, Factors]]) -> None:
    theirs, ours, factors = peft_pair
    merged = lora.merged(factors, ours.site_weights())
    theirs.merge_adapter()
    modules = dict(theirs.base_model.model.named_modules())
    for site in ours.sites():
        found = merged[site].merged
        assert found is not None
        assert worst(found, modules[ours.site_name(site)].base_layer.weight) < MERGED
    theirs.unmerge_adapter()
