import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_c4 import write_lines
from transformers import PreTrainedTokenizerFast

from tagi.config import DataConfig
from tagi.data.segments import MAX_LENGTH, TokenStore, cut, pretraining_segments
from tagi.data.sources import Sources
from tagi.data.sources.c4 import documents, list_files
from tagi.data.tokenizers import word_level
from tagi.errors import DataError
from tagi.pretraining.packing import pieces
from tagi.train.batches import segment_batch, text_batches
from training_runs import config

TEXTS = ["one two three four", "one two", "five six seven", "", "one three five seven two"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_level(["one", "two", "three", "four", "five", "six", "seven"])


@pytest.fixture
def store(tokenizer: PreTrainedTokenizerFast) -> TokenStore:
    return TokenStore.of(iter(TEXTS), tokenizer)


@given(st.integers(3, 1100), st.integers(0, 2**32))
def test_parts_are_never_empty_and_concatenate_to_the_document(length: int, seed: int) -> None:
    tokens = np.arange(length, dtype=np.uint16)
    parts = cut(tokens, np.random.default_rng(seed))
    assert len(parts) == 3 and min(map(len, parts)) >= 1
    np.testing.assert_array_equal(np.concatenate(parts), tokens[:1024])


def test_every_cut_is_equally_likely() -> None:
    tokens, draws = np.arange(7, dtype=np.uint16), 15_000
    rng = np.random.default_rng(0)
    counts = Counter(tuple(map(len, cut(tokens, rng))) for _ in range(draws))
    ways = [(a, b, 7 - a - b) for a in range(1, 6) for b in range(1, 7 - a)]
    assert set(counts) == set(ways)
    assert len(ways) == math.comb(6, 2)
    expected = draws / len(ways)
    chi_square = sum((counts[way] - expected) ** 2 / expected for way in ways)
    assert chi_square < 36.1  # 14 degrees of freedom: exceeded by chance once in a thousand


def test_the_store_holds_the_token_ids(store: TokenStore) -> None:
    assert [list(store[i]) for i in range(len(store))] == [[3, 4, 5, 6], [7, 8, 9], [3, 5, 7, 9, 4]]
    assert store.tokens.dtype == np.uint16


def test_long_documents_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    store = TokenStore.of(iter(["one two three", "six " * 2000]), tokenizer, longest=MAX_LENGTH)
    assert [len(store[i]) for i in range(len(store))] == [3, 1024]


def test_a_large_vocabulary_takes_four_bytes() -> None:
    tokenizer = word_level([f"w{i}" for i in range(70_000)])
    store = TokenStore.of(iter(["w1 w69999 w2"]), tokenizer)
    assert list(store[0]) == [4, 70_002, 5]
    assert store.tokens.dtype == np.int32


def test_an_epoch_shows_every_document_once_with_new_cuts(store: TokenStore) -> None:
    def item(index: int, seed: int = 5) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(int, part)) for part in pretraining_segments(store, index, seed)[:3])

    whole = sorted(tuple(map(int, store[i])) for i in range(len(store)))
    epochs = [[item(index) for index in range(first, first + 3)] for first in range(0, 60, 3)]
    for epoch in epochs:
        assert sorted(a + b + c for a, b, c in epoch) == whole
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert item(41) == epochs[13][2]
    assert any(item(index, seed=6) != item(index) for index in range(5))


def test_real_text(shared_data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    files = list_files(shared_data / "c4")
    assert sum(1 for text in documents(files) if text.strip()) == 27_119
    store = TokenStore.of(islice(documents(list_files(shared_data / "c4", "validation")), 300), tokenizer)
    assert 290 <= len(store) <= 300
    assert len(np.concatenate(pretraining_segments(store, 12_345, seed=0)[:3])) >= 3


def test_the_end_token_stands_where_a_document_ends_and_nowhere_where_it_was_cut(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Of a document of exactly 1,024 tokens the end is there; of one with one more it is not (Eq. 3)."""
    texts = ["one two three", "six " * 1024, "seven " * 1025, "five " * 3000]
    store = TokenStore.of(iter(texts), tokenizer, longest=MAX_LENGTH)
    assert store.shortened == {2, 3}
    end, seen = tokenizer.eos_token_id, set[tuple[int, bool]]()
    for index in range(40):
        item = pretraining_segments(store, index, seed=0)
        batch = segment_batch([item], tokenizer)
        word = int(item.a[0])
        seen.add((word, item.ends))
        assert batch.instruction_ids.tolist() == [item.a.tolist()] and batch.input_ids.tolist() == [item.b.tolist()]
        assert batch.labels.tolist() == [[*item.c.tolist(), *[end] * item.ends]]
        assert end not in {*item.a.tolist(), *item.b.tolist(), *item.c.tolist()}
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("one", "six", "seven", "five")}
    assert seen == {(ids["one"], True), (ids["six"], True), (ids["seven"], False), (ids["five"], False)}


def test_pieces_of_a_shortened_document_have_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    store = TokenStore.of(iter(["one " * 20, "two " * 30]), tokenizer, longest=20)
    assert pieces(store, 12).ends.tolist() == [False, True, False, False]


def test_text_without_a_document_that_can_be_cut(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_lines(tmp_path / "c4-train.00000-of-00001.json", ["one two", "", "one"])
    data = DataConfig(source="c4", path=str(tmp_path))
    settings = config(tmp_path / "runs").model_copy(update={"stage": "pretrain", "data": data})
    with pytest.raises(DataError, match="text: no document has 3 tokens or more"):
        text_batches(settings, tokenizer, Sources())
