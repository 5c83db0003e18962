"""Rows that hold several texts: what is in them, and that the texts of a row do not meet."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.models import as_transformers
from builders import VOCABULARY, small_t5, worst
from tagi.backbones.t5.model import T5
from tagi.data.collate import IGNORE, Batch
from tagi.data.segments import TokenStore
from tagi.losses import cross_entropy
from tagi.pretraining.packing import (
    SHORTEST,
    PackedBatch,
    PackedText,
    Pair,
    PrefixLM,
    SpanCorruption,
    divided,
    filled,
    packed,
    pieces,
)
from tagi.pretraining.stage import PackedT5

SENTINELS = tuple(range(47, 37, -1))
END = 1
SPANS = SpanCorruption(24, 12, 0.15, 3.0, SENTINELS, END)
PREFIX = PrefixLM(24, END)


def store_of(lengths: list[int], seed: int = 0) -> TokenStore:
    """Documents of so many random tokens, none of them a sentinel."""
    rng = np.random.default_rng(seed)
    return TokenStore(rng.integers(2, 38, sum(lengths)).astype(np.uint16), np.cumsum([0, *lengths]))


def restored(pair: Pair) -> list[int]:
    """A piece from its corrupted halves: every sentinel of the input replaced by what the target says of it."""
    said: dict[int, list[int]] = {}
    for token in pair.target[:-1].tolist():
        if token in SENTINELS:
            said[token] = []
        else:
            said[next(reversed(said))].append(token)
    return [x for token in pair.input[:-1].tolist() for x in (said[token] if token in SENTINELS else [token])]


@given(st.integers(2, 200), st.integers(0, 2**62), st.floats(0.05, 0.6), st.floats(1.0, 6.0))
def test_span_corruption_hides_the_stated_share_and_loses_nothing(
    length: int, draw: int, density: float, mean_span: float
) -> None:
    objective = SpanCorruption(512, 512, density, mean_span, tuple(range(1000, 900, -1)), END)
    piece = np.arange(2, 2 + length)
    pair = objective.pair(piece, True, draw)
    marks = [token for token in pair.input.tolist() if token > 900]
    hidden = [token for token in pair.target[:-1].tolist() if token <= 900]
    assert len(hidden) == min(max(round(length * density), 1), length - 1)
    assert marks == list(range(1000, 1000 - len(marks), -1))
    assert pair.target.tolist()[0] == 1000 and pair.target[-1] == pair.input[-1] == END
    assert sorted([t for t in pair.input[:-1].tolist() if t <= 900] + hidden) == piece.tolist()
    sizes = objective.sizes(np.array([length]), np.array([True]), np.array([draw]))
    assert (int(sizes[0][0]), int(sizes[1][0])) == (len(pair.input), len(pair.target))


def test_span_corruption_is_undone_by_its_target() -> None:
    for draw in range(200):
        piece = np.random.default_rng(draw).integers(2, 38, 27)
        pair = SpanCorruption(64, 64, 0.3, 3.0, SENTINELS, END).pair(piece, False, draw)
        assert restored(pair) == piece.tolist()


def test_lengths_are_uniform_over_all_ways_to_divide() -> None:
    rng = np.random.default_rng(0)
    found = Counter(tuple(divided(5, 3, rng).tolist()) for _ in range(6000))
    assert set(found) == {(a, b, 5 - a - b) for a in range(1, 4) for b in range(1, 5 - a)}
    assert all(abs(count / 6000 - 1 / 6) < 0.025 for count in found.values())  # 5 standard deviations


@given(st.integers(2, 24), st.integers(0, 2**62), st.booleans())
def test_prefix_lm_cuts_once_and_ends_where_the_document_does(length: int, draw: int, ends: bool) -> None:
    piece = np.arange(2, 2 + length)
    pair = PREFIX.pair(piece, ends, draw)
    said = pair.target[:-1] if ends else pair.target
    assert pair.input[-1] == END and (not ends or pair.target[-1] == END)
    assert np.concatenate((pair.input[:-1], said)).tolist() == piece.tolist()
    assert len(pair.input) > 1 and len(said) > 0
    sizes = PREFIX.sizes(np.array([length]), np.array([ends]), np.array([draw]))
    assert (int(sizes[0][0]), int(sizes[1][0])) == (len(pair.input), len(pair.target))


def test_the_longest_piece_fills_a_row_and_one_token_more_would_not_fit() -> None:
    longest = SPANS.longest
    for length, fits in ((longest, True), (longest + 1, False)):
        pair = SPANS.pair(np.arange(length), True, 0)
        assert (len(pair.input) <= 24 and len(pair.target) <= 12) is fits
    assert PREFIX.longest == 24


def test_pieces_cover_every_document_but_short_rests() -> None:
    lengths = [5, 8, 20, 21, 47, 60]
    found = pieces(store_of(lengths), 20)
    cut = [(int(last - first), bool(end)) for first, last, end in zip(*found, strict=True)]
    assert SHORTEST == 8
    assert cut == [(8, True), (20, True), (20, False), (20, False), (20, False), *[(20, False)] * 2, (20, True)]


@given(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=80))
def test_rows_hold_every_piece_once_and_none_overflows(sizes: list[tuple[int, int]]) -> None:
    inputs, targets = (np.array(x) for x in zip(*sizes, strict=True))
    rows = filled(np.arange(len(sizes)), inputs, targets, (24, 12))
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    assert all(inputs[row].sum() <= 24 and targets[row].sum() <= 12 for row in rows)


@pytest.mark.parametrize("objective", [SPANS, PREFIX])
def test_an_epoch_shows_every_piece_once_and_rows_come_out_the_same_in_any_order(
    objective: SpanCorruption | PrefixLM,
) -> None:
    store = store_of([9, 30, 12, 55, 8, 17, 26] * 5)
    text = PackedText(store, objective, seed=3)
    rows = text.epoch_rows(0)
    forward = [text.batch(i, 1) for i in range(2 * rows)]
    again = PackedText(store, objective, seed=3)
    for i in reversed(range(2 * rows)):
        assert torch.equal(again.batch(i, 1).input_ids, forward[i].input_ids)
        assert torch.equal(again.batch(i, 1).labels, forward[i].labels)
    first, second = ([_tokens(one) for one in part] for part in (forward[:rows], forward[rows:]))
    whole = sorted(int(x) for a, b, _ in zip(*pieces(store, objective.longest), strict=True) for x in store.tokens[a:b])
    assert sorted(x for row in first for x in row) == whole
    assert first != second


def _tokens(batch: Batch) -> list[int]:
    """Everything in a batch but sentinels, ends and padding."""
    both = batch.input_ids.flatten().tolist() + batch.labels[batch.labels != IGNORE].flatten().tolist()
    return sorted(token for token in both if 2 <= token <= 37)


def _rows() -> list[list[Pair]]:
    rng = np.random.default_rng(1)

    def pair(inputs: int, targets: int) -> Pair:
        return Pair(rng.integers(2, VOCABULARY, inputs), rng.integers(2, VOCABULARY, targets))

    return [[pair(5, 3), pair(9, 4), pair(10, 5)], [pair(24, 2)], [pair(2, 6), pair(3, 1)]]


def test_packed_rows_give_the_logits_that_transformers_gives_to_each_text_alone() -> None:
    """The worst difference measured is 1.4e-6, of logits up to 4.5."""
    rows = _rows()
    model = small_t5()
    reference = as_transformers(model).eval()
    logits = read(model, packed(rows, (24, 12)))
    for number, row in enumerate(rows):
        place = 0
        for pair in row:
            alone = reference(input_ids=torch.tensor(pair.input)[None], labels=torch.tensor(pair.target)[None]).logits
            ours = logits[number, place : place + len(pair.target)]
            assert worst(ours, alone[0]) < 1e-5
            place += len(pair.target)


def test_the_loss_of_packed_rows_and_its_gradient_are_the_sum_over_their_texts() -> None:
    """The worst difference of a gradient measured is 5.5e-7 of its largest value."""
    rows = _rows()
    together, apart = small_t5(), small_t5()
    batch = packed(rows, (24, 12))
    loss = cross_entropy(read(together, batch), batch.labels)
    loss.total.backward()
    every = [packed([[pair]], (24, 12)) for row in rows for pair in row]
    for one in every:
        cross_entropy(read(apart, one), one.labels).total.backward()
    assert int(loss.count) == sum(len(pair.target) for row in rows for pair in row)
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert worst(ours.grad, theirs.grad) <= 5e-6 * float(theirs.grad.abs().max()), name


def test_a_text_does_not_see_its_neighbours() -> None:
    rows = _rows()
    model = small_t5()
    changed = [[rows[0][0], Pair(rows[0][1].input[::-1].copy(), rows[0][1].target), rows[0][2]], *rows[1:]]
    before, after = (read(model, packed(one, (24, 12))) for one in (rows, changed))
    same = (before - after).detach().abs().amax(-1)
    assert float(same[0, :3].max()) == float(same[0, 7:12].max()) == float(same[1:].max()) == 0.0
    assert float(same[0, 3:7].min()) > 0.0


def read(model: T5, batch: PackedBatch) -> torch.Tensor:
    return PackedT5(model)(batch.input_ids, batch.input_owner, batch.target_ids, batch.target_owner)
