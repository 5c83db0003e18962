"""Losses are sums and counts: divided they are the mean, and splitting a batch changes nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from builders import normal, seeded
from tagi.losses import IGNORE, Loss, cross_entropy

ROWS, LENGTH, WORDS = 6, 5, 11


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (R, O, V) and labels (R, O) with ignored ends; one row is ignored whole."""
    labels = torch.randint(0, WORDS, (ROWS, LENGTH), generator=seeded(1))
    lengths = torch.tensor([5, 1, 3, 0, 2, 4])
    ignored = torch.arange(LENGTH) >= lengths[:, None]
    return normal(ROWS, LENGTH, WORDS, seed=0).to(dtype), labels.masked_fill(ignored, IGNORE)


def test_divided_it_is_torchs_mean_over_the_flattened_batch() -> None:
    logits, labels = batch(torch.float32)
    loss = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    assert torch.equal(loss.total, expected)
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    assert torch.allclose(loss.total / loss.count, mean, rtol=5e-7, atol=0)  # measured 0: fp32 has 6e-8


def test_it_is_minus_the_log_probability_of_each_label_written_out() -> None:
    logits, labels = batch(torch.float32)
    expected, count = 0.0, 0
    for row in range(ROWS):
        for place in range(LENGTH):
            label = int(labels[row, place])
            if label != IGNORE:
                odds = logits[row, place].double().exp()
                expected -= math.log(float(odds[label] / odds.sum()))
                count += 1
    loss = cross_entropy(logits, labels)
    assert int(loss.count) == count == 15
    assert float(loss.total) == pytest.approx(expected, rel=5e-7)  # worst measured 6.2e-8


@given(st.lists(st.integers(1, ROWS - 1), max_size=4, unique=True))
def test_sums_and_counts_of_any_split_add_up_to_the_whole(cuts: list[int]) -> None:
    logits, labels = batch()
    whole = cross_entropy(logits, labels)
    ends = [*sorted(cuts), ROWS]
    parts = [cross_entropy(logits[start:end], labels[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(int(part.count) for part in parts) == int(whole.count)
    assert sum(float(part.total) for part in parts) == pytest.approx(float(whole.total), rel=2e-15)  # 1.7e-16


@given(st.lists(st.integers(1, ROWS - 1), max_size=4, unique=True))
def test_accumulated_gradient_is_the_whole_batchs_gradient(cuts: list[int]) -> None:
    logits, labels = batch()
    count = int(cross_entropy(logits, labels).count)
    whole, split = (logits.clone().requires_grad_() for _ in range(2))
    (cross_entropy(whole, labels).total / count).backward()
    ends = [*sorted(cuts), ROWS]
    for start, end in zip([0, *ends], ends, strict=False):
        (cross_entropy(split[start:end], labels[start:end]).total / count).backward()
    assert whole.grad is not None and split.grad is not None
    assert torch.allclose(split.grad, whole.grad, rtol=2e-15, atol=0)  # measured 0: every row has its own


def test_batch_of_ignored_labels_adds_zero_and_no_gradient() -> None:
    logits = normal(2, 3, WORDS, seed=0).requires_grad_()
    loss = cross_entropy(logits, torch.full((2, 3), IGNORE))
    assert (float(loss.total.detach()), int(loss.count)) == (0.0, 0)
    loss.total.backward()
    assert logits.grad is not None and not logits.grad.any()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits, labels = batch(torch.float32)
    half = cross_entropy(logits.bfloat16(), labels)
    assert half.total.dtype == torch.float32
    assert torch.equal(half.total, cross_entropy(logits.bfloat16().float(), labels).total)


def test_a_loss_is_immutable() -> None:
    loss = Loss(torch.zeros(()), torch.ones(()))
    with pytest.raises(AttributeError):
        loss.total = torch.ones(())  # pyright: ignore[reportAttributeAccessIssue]
