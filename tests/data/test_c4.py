import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tagi.data.c4 import TokenStore, cut, documents, list_files, pretraining_segments
from tagi.data.tokenizers import word_level
from tagi.errors import DataError
from tagi.pretraining.packing import pieces
from tagi.train.pretrain import segment_batch

TEXTS = ["one two three four", "one two", "five six seven", "", "one three five seven two"]


def write_lines(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text, "timestamp": "", "url": ""}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_level(["one", "two", "three", "four", "five", "six", "seven"])


@pytest.fixture
def store(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> TokenStore:
    return TokenStore.build([write_lines(tmp_path / "a.json.gz", TEXTS)], tokenizer)


def test_documents_of_both_kinds_of_file_in_order(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.json", ["third"])
    write_lines(tmp_path / "a.json.gz", ["first", "second\nline"])
    assert list(documents(list_files(tmp_path))) == ["first", "second\nline", "third"]


def test_files_of_one_part(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "c4-train.00000-of-00001.json.gz", ["x"])
    valid = write_lines(tmp_path / "c4-validation.00000-of-00001.json.gz", ["y"])
    assert list_files(tmp_path, "train") == [train]
    assert list_files(tmp_path, "validation") == [valid]
    assert list_files(tmp_path) == [train, valid]


def test_documents_are_streamed(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a.json", ["first"])
    stream = documents([good, tmp_path / "missing.json"])
    assert next(stream) == "first"
    with pytest.raises(DataError, match=r"missing\.json: cannot be read"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not JSON", "line 2: is not JSON"),
        (b'{"text": "cut', "line 2: is not JSON"),
        (b'{"text": "\xff"}', "line 2: is not UTF-8 (byte 10)"),
        (b'["text"]', "line 2: must be a JSON object"),
        (b'{"url": ""}', "line 2, text: is missing"),
        (b'{"text": 3}', "line 2, text: must be a string"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(documents([path]))
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_damaged_gzip_files(tmp_path: Path) -> None:
    whole = write_lines(tmp_path / "a.json.gz", TEXTS * 50).read_bytes()
    flipped = whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:]
    for raw in (b"plain text", whole[: len(whole) // 2], flipped):
        path = tmp_path / "bad.json.gz"
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"bad\.json\.gz: "):
            list(documents([path]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(), st.booleans())
def test_arbitrary_bytes_are_text_or_a_data_error(tmp_path: Path, raw: bytes, packed: bool) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    try:
        texts = list(documents([path]))
    except DataError as error:
        texts, message = [], str(error)
    else:
        message = ""
    assert message.startswith(str(path)) or len(texts) == raw.count(b'"text"')


def test_folders_without_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.json\.gz"):
        list_files(tmp_path)
    short = write_lines(tmp_path / "a.json", ["one two", "", "one"])
    with pytest.raises(DataError, match="text: no document has 3 tokens or more"):
        TokenStore.build([short], tokenizer)


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


def test_the_store_is_limited_and_long_documents_are_cut(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_lines(tmp_path / "a.json", ["one two three", "six " * 2000, "four five six"])
    store = TokenStore.build([path], tokenizer, limit=2)
    assert [len(store[i]) for i in range(len(store))] == [3, 1024]


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    tokenizer = word_level([f"w{i}" for i in range(70_000)])
    store = TokenStore.build([write_lines(tmp_path / "a.json", ["w1 w69999 w2"])], tokenizer)
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
    store = TokenStore.build(list_files(shared_data / "c4", "validation"), tokenizer, limit=300)
    assert 290 <= len(store) <= 300
    assert len(np.concatenate(pretraining_segments(store, 12_345, seed=0)[:3])) >= 3


def test_the_end_token_stands_where_a_document_ends_and_nowhere_where_it_was_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of a document of exactly 1,024 tokens the end is there; of one with one more it is not (Eq. 3)."""
    path = write_lines(tmp_path / "a.json", ["one two three", "six " * 1024, "seven " * 1025, "five " * 3000])
    store = TokenStore.build([path], tokenizer)
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
