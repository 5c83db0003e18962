"""Rows that hold several texts: what is in them, and that the texts of a row do not meet."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5ForConditionalGeneration

from builders import VOCABULARY, small_t5, worst
from tagi.backbones.base import Prepared
from tagi.backbones.rows import Rows
from tagi.backbones.t5.packed import PackedT5
from tagi.backbones.t5.packed import packed as logits_of
from tagi.backbones.t5.weights import save_t5
from tagi.data.c4 import TokenStore
from tagi.data.collate import IGNORE, Batch, assemble
from tagi.data.packing import (
    SHORTEST,
    PackedText,
    Pair,
    PrefixLM,
    SpanCorruption,
    divided,
    filled,
    packed,
    pieces,
    repacked,
)
from tagi.losses import cross_entropy

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


def test_packed_rows_give_the_logits_that_transformers_gives_to_each_text_alone(tmp_path: Path) -> None:
    """The worst difference measured is 1.4e-6, of logits up to 4.5."""
    rows = _rows()
    t5 = small_t5()
    save_t5(t5, tmp_path)
    reference = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    logits = logits_of(PackedT5(t5), packed(rows, (24, 12)))
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
    together, apart = PackedT5(small_t5()), PackedT5(small_t5())
    batch = packed(rows, (24, 12))
    loss = cross_entropy(logits_of(together, batch), batch.labels)
    loss.total.backward()
    every = [packed([[pair]], (24, 12)) for row in rows for pair in row]
    for one in every:
        cross_entropy(logits_of(apart, one), one.labels).total.backward()
    assert int(loss.count) == sum(len(pair.target) for row in rows for pair in row)
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert worst(ours.grad, theirs.grad) <= 5e-6 * float(theirs.grad.abs().max()), name


LENGTHS = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=12)


def _padded(lengths: list[tuple[int, int]]) -> Batch:
    rng = np.random.default_rng(len(lengths))
    inputs, targets = ([rng.integers(2, 38, n).tolist() for n in each] for each in zip(*lengths, strict=True))
    return replace(assemble([[]], inputs, targets, torch.zeros(len(lengths), dtype=torch.long)), names=("a", "b"))


@given(LENGTHS)
def test_a_repacked_batch_holds_the_same_texts_in_no_more_places(lengths: list[tuple[int, int]]) -> None:
    padded = _padded(lengths)
    batch = repacked(padded)
    assert batch.packing is not None
    assert sorted(_texts(batch)) == sorted(zip(_lists(padded.input_ids), _lists(padded.labels), strict=True))
    assert batch.input_ids.numel() <= padded.input_ids.numel()
    assert (batch.tokens, batch.names) == (padded.tokens, padded.names)


def _lists(padded: torch.Tensor) -> list[list[int]]:
    return [row[row > 0].tolist() for row in padded]


def _texts(batch: Batch) -> Iterator[tuple[list[int], list[int]]]:
    assert batch.packing is not None
    for inputs, labels, told, asked in zip(batch.input_ids, batch.labels, *batch.packing, strict=True):
        for number in range(1, int(told.max()) + 1):
            yield inputs[told == number].tolist(), labels[asked == number].tolist()


def test_a_repacked_batch_has_the_loss_and_gradient_of_the_padded_one() -> None:
    """The worst difference of a gradient measured in 60 batches is 1.3e-6 of its largest value."""
    padded = _padded([(24, 3), (5, 1), (11, 4), (12, 2), (2, 5), (17, 1)])
    assert len(repacked(padded).input_ids) == 3 < len(padded.input_ids)
    together, apart = small_t5(), small_t5()
    alone = {"prepared": Prepared(1, {}), "rows": Rows(1, len(padded.labels))}
    dense = repacked(padded)
    losses: list[tuple[float, int]] = []
    for logits, labels in (
        (logits_of(PackedT5(together), dense), dense.labels),
        (apart.score(padded.input_ids, padded.input_mask, padded.target_ids, **alone), padded.labels),
    ):
        loss = cross_entropy(logits, labels)
        loss.total.backward()
        losses.append((float(loss.total.detach()), int(loss.count)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # measured 0
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert worst(ours.grad, theirs.grad) <= 1e-5 * float(theirs.grad.abs().max()), name


def test_a_text_does_not_see_its_neighbours() -> None:
    rows = _rows()
    model = PackedT5(small_t5())
    changed = [[rows[0][0], Pair(rows[0][1].input[::-1].copy(), rows[0][1].target), rows[0][2]], *rows[1:]]
    before, after = (logits_of(model, packed(one, (24, 12))) for one in (rows, changed))
    same = (before - after).detach().abs().amax(-1)
    assert float(same[0, :3].max()) == float(same[0, 7:12].max()) == float(same[1:].max()) == 0.0
    assert float(same[0, 3:7].min()) > 0.0
