"""Documents in C4's format: what is read of them, and what is wrong with them."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagi.config import DataConfig
from tagi.data.sources.c4 import C4, documents, list_files
from tagi.errors import ConfigError, DataError

TEXTS = ["one two three four", "one two", "five six seven", "", "one three five seven two"]


def write_lines(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text, "timestamp": "", "url": ""}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


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


def test_folders_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.json\.gz"):
        list_files(tmp_path)


def test_a_source_of_documents_without_tasks(tmp_path: Path) -> None:
    write_lines(tmp_path / "c4-train.00000-of-00002.json.gz", TEXTS)
    write_lines(tmp_path / "c4-train.00001-of-00002.json.gz", ["six"])
    write_lines(tmp_path / "c4-validation.00000-of-00001.json.gz", ["held out"])
    source = C4(DataConfig(source="c4", path=str(tmp_path), max_documents=3))
    assert (list(source.documents()), list(source.texts())) == (TEXTS[:3], [*TEXTS, "six"])
    assert [path.name[:13] for path in source.files()] == ["c4-train.0000"] * 2
    for ask in (lambda: source.train(0), lambda: source.groups("task", 0), lambda: source.test(0)):
        with pytest.raises(ConfigError, match=r"data\.source: c4 has no"):
            ask()
    assert source.valid(0) == []
