"""Eqs. 4 and 5 against their naive forms, their gradients, and what they must not depend on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from builders import normal, random_lora, seeded, small_t5, worst
from tagi.backbones.sites import Modules
from tagi.data.collate import Batch
from tagi.errors import CheckpointError
from tagi.losses import (
    IGNORE,
    TokenDistribution,
    cross_entropy,
    distillation,
    factor_distance,
    group_cross_entropy,
    product_distance,
    product_energy,
    soften,
    truncate,
    valid_positions,
)
from tagi.model.bank import Bank, BankManifest, TeacherEntry
from tagi.model.tagi import Output, neutral
from tagi.train.objectives.align import alignment_term
from tagi.train.objectives.distill import distillation_term
from tagi.train.objectives.logits import CacheIdentity, LogitCache

TASKS, RANK, WIDTH_IN, WIDTH_OUT = 3, 4, 10, 7
ROWS, LENGTH, WORDS = 6, 5, 11


def factors(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A (N, r, I) and B (N, J, r)."""
    a, b = normal(TASKS, RANK, WIDTH_IN, seed=seed), normal(TASKS, WIDTH_OUT, RANK, seed=seed + 1)
    return a.to(dtype), b.to(dtype)


def naive_distance(a: Tensor, b: Tensor, other_a: Tensor, other_b: Tensor) -> Tensor:
    return (b @ a - other_b @ other_a).square().sum((-1, -2))


def token_labels() -> Tensor:
    labels = torch.randint(0, WORDS, (ROWS, LENGTH), generator=seeded(1))
    ignored = torch.arange(LENGTH) >= torch.tensor([5, 1, 3, 2, 2, 4])[:, None]
    return labels.masked_fill(ignored, IGNORE)


def test_gram_form_equals_the_products_themselves() -> None:
    """Worst relative difference measured: 5e-16 in fp64, 5e-7 in fp32."""
    for dtype, bound in ((torch.float64, 5e-15), (torch.float32, 5e-6)):
        one, other = factors(0, dtype), factors(5, dtype)
        torch.testing.assert_close(product_distance(*one, *other), naive_distance(*one, *other), rtol=bound, atol=0)
        torch.testing.assert_close(product_energy(*one), (one[1] @ one[0]).square().sum((-1, -2)), rtol=bound, atol=0)


def test_gradient_of_the_gram_form() -> None:
    one, other = factors(0), factors(5)
    inputs = tuple(x.requires_grad_() for x in one)
    assert torch.autograd.gradcheck(lambda a, b: product_distance(a, b, *other), inputs)
    assert torch.autograd.gradcheck(lambda a: factor_distance(a, other[0]), inputs[:1])


def test_the_gauge_changes_nothing() -> None:
    """B M⁻¹ · M A is the same LoRA."""
    one, other = factors(0), factors(5)
    gauge = normal(TASKS, RANK, RANK, seed=9).double() + 3 * torch.eye(RANK).double()
    turned = gauge @ one[0], one[1] @ gauge.inverse()
    turned_distance, distance = product_distance(*turned, *other), product_distance(*one, *other)
    torch.testing.assert_close(turned_distance, distance, rtol=5e-14, atol=0)  # worst measured 5.3e-15
    assert worst(factor_distance(turned[0], other[0]), factor_distance(one[0], other[0])) > 10  # measured 460


def test_alignment_does_not_stall_where_b_starts_at_zero() -> None:
    """Gradient descent from B = 0 and the shared A₀ closes nearly all of the distance to a teacher."""
    a0 = normal(1, RANK, WIDTH_IN, seed=3) * WIDTH_IN**-0.5
    target = a0 + 0.1 * normal(1, RANK, WIDTH_IN, seed=4), 0.3 * normal(1, WIDTH_OUT, RANK, seed=5)
    a, b = a0.clone().requires_grad_(), torch.zeros(1, WIDTH_OUT, RANK, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=1e-2)
    curve: list[float] = []
    for _ in range(400):
        loss = product_distance(a, b, *target).sum() / product_energy(*target).sum()
        curve.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert curve[0] == pytest.approx(1.0)
    assert curve[50] < 0.05  # measured 0.0083
    assert curve[-1] < 1e-4  # measured 0


def test_distillation_is_the_divergence_of_softened_distributions() -> None:
    student, teacher, labels = normal(ROWS, LENGTH, WORDS, seed=0), normal(ROWS, LENGTH, WORDS, seed=1), token_labels()
    temperature, valid = 3.0, valid_positions(labels)
    loss = distillation(student, soften(teacher, temperature), valid, temperature)
    q, p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    expected = F.kl_div(q[valid], p[valid], log_target=True, reduction="sum") * temperature**2
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=0)  # measured 0: fp32 has 6e-8
    assert int(loss.count) == int(valid.sum())


def test_distillation_of_itself_is_zero_and_ignores_padding() -> None:
    logits, labels = normal(ROWS, LENGTH, WORDS, seed=0).double(), token_labels()
    valid = valid_positions(labels)
    assert float(distillation(logits, soften(logits, 2.0), valid, 2.0).total.abs()) < 1e-12  # measured 0
    noisy = torch.where(valid[..., None], logits, normal(ROWS, LENGTH, WORDS, seed=7).double())
    teacher = soften(normal(ROWS, LENGTH, WORDS, seed=1).double(), 2.0)
    assert torch.equal(distillation(noisy, teacher, valid, 2.0).total, distillation(logits, teacher, valid, 2.0).total)


def test_a_sure_teacher_gives_finite_gradients() -> None:
    teacher = torch.full((1, 1, WORDS), -1e4)
    teacher[..., 3] = 1e4
    student = normal(1, 1, WORDS, seed=0).requires_grad_()
    for given in (soften(teacher, 1.0), truncate(soften(teacher, 1.0), 2)):
        loss = distillation(student, given, torch.ones(1, 1, dtype=torch.bool), 1.0).total
        assert torch.autograd.grad(loss, student)[0].isfinite().all()
        assert loss.item() == pytest.approx(
            F.cross_entropy(student[0], torch.tensor([3])).item(), rel=1e-6
        )  # measured 0


def test_a_teacher_with_fewer_rows_of_output_gives_them_no_mass() -> None:
    """Tk-Instruct is saved without the 28 rows that no token has; the student's mass on them counts against it."""
    student, teacher, labels = (
        normal(ROWS, LENGTH, WORDS, seed=0),
        normal(ROWS, LENGTH, WORDS - 2, seed=1),
        token_labels(),
    )
    valid = valid_positions(labels)
    found = distillation(student, soften(teacher, 2.0), valid, 2.0).total
    whole = torch.cat([teacher, torch.full((ROWS, LENGTH, 2), -torch.inf)], -1)
    expected = distillation(student, soften(whole, 2.0), valid, 2.0).total
    torch.testing.assert_close(found, expected, rtol=5e-7, atol=0)  # measured 0: fp32 has 6e-8
    assert found.isfinite() and float(found) > 0


@pytest.mark.parametrize("k", [1, 3, WORDS - 1])
def test_top_k_and_tail_bound_the_divergence_from_below(k: int) -> None:
    student, labels = normal(ROWS, LENGTH, WORDS, seed=0).double(), token_labels()
    whole, valid = soften(normal(ROWS, LENGTH, WORDS, seed=1).double(), 1.5), valid_positions(labels)
    cut, full = (distillation(student, given, valid, 1.5).total for given in (truncate(whole, k), whole))
    assert truncate(whole, k).log_p.shape[-1] == k
    if k == WORDS - 1:
        torch.testing.assert_close(cut, full, rtol=1e-14, atol=0)  # the tail is then one token; measured 0
    else:
        assert float(cut) < float(full)


def test_lanes_are_cross_entropies_of_their_own_rows() -> None:
    logits, labels = normal(ROWS, LENGTH, WORDS, seed=0).double(), token_labels()
    group_index = torch.tensor([0, 2, 0, 1, 2, 2])
    loss = group_cross_entropy(logits, labels, group_index, 4)
    for number in range(4):
        alone = cross_entropy(logits[group_index == number], labels[group_index == number])
        torch.testing.assert_close(loss.total[number], alone.total, rtol=2e-15, atol=0)  # worst measured 1.6e-16
        assert loss.count[number] == alone.count


def bank_of(names: dict[str, tuple[str, ...]], seed: int = 20) -> Bank:
    lora = random_lora(small_t5(), len(names), seed=seed)
    entries = tuple(
        TeacherEntry(group=group, tasks=tasks, steps=1, loss=0.0, data_fingerprint="", file=f"{group}.safetensors")
        for group, tasks in names.items()
    )
    manifest = BankManifest(base="", base_fingerprint="", reads="", rank=3, scale=2.0, teachers=entries)
    return Bank(manifest, lora, {site: factors.a[0] for site, factors in lora.items()})


def empty_batch(names: tuple[str, ...], labels: Tensor | None = None) -> Batch:
    none = torch.zeros(len(names), 0, dtype=torch.long)
    rows = torch.arange(len(names))
    ids = torch.arange(2, 2 + 3 * len(names)).view(-1, 3)
    given = labels if labels is not None else none
    return Batch(none, none, ids, torch.ones_like(ids), given, rows, names, ids, torch.ones_like(ids))


def test_alignment_leaves_out_tasks_without_a_teacher_and_is_one_at_distance_of_its_energy() -> None:
    bank = bank_of({"g": ("x",), "h": ("y",)})
    term = alignment_term(bank, 1.0, "delta")
    student = random_lora(small_t5(), 3, seed=50)

    def value(names: tuple[str, ...], lora: Modules = student) -> tuple[float, int]:
        adapter = replace(neutral(small_t5(), 3), modules=lora)
        loss = term.loss(Output(torch.zeros(1), adapter), empty_batch(names))
        assert loss.count == term.count(empty_batch(names))
        return float(loss.total), int(loss.count)

    both, count = value(("x", "nobody", "y"))
    first, second = value(("x", "nobody", "none"))[0], value(("none", "nobody", "y"))[0]
    assert count == 2
    assert both == pytest.approx(first + second, rel=5e-7)  # worst measured 5.6e-8
    assert value(("a", "b", "c")) == (0.0, 0)
    zero = {site: replace(f, b=torch.zeros_like(f.b)) for site, f in student.items()}
    assert value(("x", "y", "nobody"), zero)[0] == pytest.approx(2.0, rel=1e-6)  # two tasks at mean energy; measured 0
    same = {site: replace(f, a=f.a[[0, 1, 0]], b=f.b[[0, 1, 0]]) for site, f in bank.lora.items()}
    assert abs(value(("x", "y", "x"), same)[0]) < 1e-5  # measured 0; the Gram form may round by 5e-7 a task


def test_distillation_leaves_out_rows_without_a_teacher() -> None:
    labels = torch.randint(0, WORDS, (3, LENGTH), generator=seeded(2))
    logits = normal(3, LENGTH, WORDS, seed=0)
    term = distillation_term(lambda batch: soften(normal(3, LENGTH, WORDS, seed=1), 1.0), 1.0, 1.0, {"x": 0, "y": 1})
    output = Output(logits, neutral(small_t5(), 3))
    batch = empty_batch(("x", "nobody", "y"), labels)
    kept = distillation(logits[[0, 2]], soften(normal(3, LENGTH, WORDS, seed=1)[[0, 2]], 1.0), labels[[0, 2]] >= 0, 1.0)
    loss = term.loss(output, batch)
    torch.testing.assert_close(loss.total, kept.total, rtol=5e-7, atol=0)  # worst measured 6.8e-8
    assert loss.count == kept.count == term.count(batch) == 2 * LENGTH


def cache_of(folder: Path, k: int, calls: list[int], **changes: object) -> LogitCache:
    identity = CacheIdentity(teacher="t", temperature=1.5, top_k=k, vocabulary=WORDS)

    def teacher(batch: Batch) -> TokenDistribution:
        calls.append(len(batch.labels))
        return soften(normal(*batch.labels.shape, WORDS, seed=int(batch.input_ids.sum())), 1.5)

    return LogitCache(folder, identity.model_copy(update=changes), teacher)


def cached_batch() -> Batch:
    return empty_batch(tuple("abcdef"), token_labels())


def test_a_cache_of_the_whole_vocabulary_is_the_online_teacher_to_the_bit(tmp_path: Path) -> None:
    calls: list[int] = []
    batch, valid = cached_batch(), valid_positions(token_labels())
    cache = cache_of(tmp_path, WORDS, calls)
    online = cache.teacher(batch)
    first = cache(batch)
    cache.flush()
    again = cache_of(tmp_path, WORDS, calls)(batch)
    assert calls == [6, 6]  # the explicit call and the first use; the reopened cache asks nobody
    for given in (first, again):
        assert given.index is None
        assert torch.equal(given.log_p[valid], online.log_p[valid])
    student = normal(ROWS, LENGTH, WORDS, seed=3)
    losses = [distillation(student, given, valid, 1.5).total for given in (online, again)]
    assert torch.equal(*losses)


def test_a_truncated_cache_gives_back_what_it_was_given(tmp_path: Path) -> None:
    batch, valid = cached_batch(), valid_positions(token_labels())
    cache = cache_of(tmp_path, 3, [])
    expected = truncate(cache.teacher(batch), 3)
    cache(batch)
    cache.flush()
    read = cache_of(tmp_path, 3, [])(batch)
    assert expected.index is not None and expected.tail is not None and read.index is not None and read.tail is not None
    assert torch.equal(read.index[valid], expected.index[valid])
    assert torch.equal(read.log_p[valid], expected.log_p[valid])
    assert torch.equal(read.tail[valid], expected.tail[valid])


def test_only_a_row_whose_text_changed_is_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []
    cache = cache_of(tmp_path, WORDS, calls)
    batch = cached_batch()
    cache(batch)
    padded = replace(batch, labels=F.pad(batch.labels, (0, 2), value=IGNORE))
    assert cache(padded).log_p.shape == (ROWS, LENGTH + 2, WORDS)
    assert len(calls) == 1
    assert batch.prompt_ids is not None
    changed = replace(batch, prompt_ids=batch.prompt_ids.index_fill(0, torch.tensor([2]), 40))
    cache(changed)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "change", [{"teacher": "x"}, {"temperature": 1.0}, {"top_k": 3}, {"vocabulary": 12}, {"format": 3}]
)
def test_a_cache_of_another_teacher_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    cache_of(tmp_path, WORDS, [])
    with pytest.raises(CheckpointError, match=f"{next(iter(change))}: is"):
        cache_of(tmp_path, WORDS, [], **change)


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, WORDS, [])
    cache(cached_batch())
    cache.flush()
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=shard.name):
        cache_of(tmp_path, WORDS, [])
    shard.unlink()
    save_file({"keys": torch.zeros(2, 16), "lengths": torch.tensor([1]), "log_p": torch.zeros(1, WORDS)}, shard)
    with pytest.raises(CheckpointError, match=f"{shard.name}: its keys, lengths and log_p do not fit"):
        cache_of(tmp_path, WORDS, [])
    shard.unlink()
    (tmp_path / "cache.json").write_text(json.dumps({"teacher": 3}))
    with pytest.raises(CheckpointError, match=r"cache\.json"):
        cache_of(tmp_path, WORDS, [])
