"""One reader for everything that is text: encodings, byte-order marks, line ends, packed files, JSON values."""

import gzip
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_runs import CONFIG, INSTRUCTION, Run, mistake
from malformed import refusal
from tagi.config.files import load
from tagi.data.promptsource import read_templates
from tagi.data.sources.c4 import documents
from tagi.data.sources.p3_files import P3Dataset
from tagi.data.sources.sni_files import SniDataset
from tagi.errors import ConfigError, DataError
from tagi.eval.report import read_predictions
from tagi.reading import json_value, read_lines, read_text

NOT_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def lines_of(path: Path, data: bytes) -> list[tuple[int, str]]:
    path.write_bytes(data)
    return list(read_lines(path))


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-be with mark", "utf-32-be with mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_one_reader_reads_every_encoding_and_line_end(encoding: str, end: str, tmp_path: Path) -> None:
    name, _, marked = encoding.partition(" with ")
    text = end.join(["ä 1", "", "😀 2", "  ", "three"])
    for ended in (text, text + end):
        found = lines_of(tmp_path / "a", (("\ufeff" if marked else "") + ended).encode(name))
        assert found == [(1, "ä 1"), (3, "😀 2"), (5, "three")]
        assert read_text(tmp_path / "a") == ended


@pytest.mark.parametrize("sign", NOT_ENDS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_reader_ends_lines_where_json_does(sign: str, encoding: str, tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", f"x{sign}y\nz".encode(encoding)) == [(1, f"x{sign}y"), (2, "z")]


@FILES
@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]))), st.booleans())
def test_one_reader_gives_back_what_was_written(tmp_path: Path, written: list[str], packed: bool) -> None:
    """Whatever the characters, but for line ends, NUL and marks, which mean something to a reader."""
    data = "\n".join(written).encode()
    found = lines_of(tmp_path / "a", gzip.compress(data) if packed else data)
    assert found == [(number, line) for number, line in enumerate(written, 1) if line.strip()]


@FILES
@given(st.binary(max_size=200))
def test_one_reader_reads_or_refuses_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    for said in (refusal(lambda: list(read_lines(path))), refusal(lambda: read_text(path))):
        assert said.startswith(f"{path}: " if said else "") and "\n" not in said


def test_one_reader_skips_marks_where_files_were_joined(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", "a\n".encode("utf-8-sig") + "b".encode("utf-8-sig")) == [(1, "a"), (2, "b")]


def test_one_reader_unpacks_by_content(tmp_path: Path) -> None:
    packed = gzip.compress("a\n".encode("utf-8-sig")) + gzip.compress(b"b")
    assert lines_of(tmp_path / "no-suffix", packed) == [(1, "a"), (2, "b")]
    assert lines_of(tmp_path / "plain.gz", b"a") == [(1, "a")]
    assert lines_of(tmp_path / "empty.gz", b"") == []
    for damaged in (packed[:-6], packed[:20], packed[:15] + b"\xff" * 20, gzip.compress(b"a") + b"rest"):
        with pytest.raises(DataError, match="is a damaged gzip file"):
            lines_of(tmp_path / "a.gz", damaged)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"fine\nca\xe9f", "a: line 2: is not UTF-8 (byte 2)"),
        ("né".encode("utf-16-le"), "a: line 1: is no text (byte 1 is NUL; UTF-16 and UTF-32 need a byte-order mark)"),
        (b"\xff\xfea", "a: is not UTF-16 (byte 2)"),
        ("a\0".encode("utf-16"), "a: is no text (character 1 is NUL)"),
        (b"\xff\xfe\0\0abc", "a: is not UTF-32 (byte 4)"),
    ],
)
def test_one_reader_names_what_is_no_text(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        lines_of(tmp_path / "a", data)
    assert str(refused.value) == f"{tmp_path}/{words}"
    with pytest.raises(DataError, match="is no"):
        read_text(tmp_path / "a")


def test_one_reader_names_what_cannot_be_opened(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "cannot be read (No such file"),
        (tmp_path, "cannot be read (Is a directory)"),
        (Path("a\0b"), "is no name of a file"),
        (Path("half\ud83d"), "is no name of a file"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long)"),
    ):
        for read in (lambda path: list(read_lines(path)), read_text):
            with pytest.raises(DataError) as refused:
                read(path)
            assert words in str(refused.value)


def test_one_reader_reads_pipes(tmp_path: Path) -> None:
    """As of a shell's <(command): nothing can be read there twice."""
    pipe, data = tmp_path / "pipe", gzip.compress("a\nb".encode("utf-8-sig"))
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for byte in data:
                file.write(bytes([byte]))

    writer = threading.Thread(target=write)
    writer.start()
    assert list(read_lines(pipe)) == [(1, "a"), (2, "b")]
    writer.join()
    assert list(read_lines(Path("standard input"), io.BytesIO(data))) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ["x", "y \\ud83d"]}', r"f: line 3, a[1]: holds half of a surrogate pair (\ud83d)"),
        ('{"a\\uDC00": 1}', r"f: line 3: holds half of a surrogate pair (\udc00)"),
        ('{"a": NaN}', "f: line 3: is not JSON (NaN is no JSON number)"),
        ('{"a": -Infinity}', "f: line 3: is not JSON (-Infinity is no JSON number)"),
        ("[" * 100_000, "f: line 3: is not JSON that we read (nested too deep)"),
        ("1" * 5_000, "f: line 3: is not JSON (Exceeds the limit"),
        ('{"a": ', "f: line 3: is not JSON (Expecting value"),
    ],
)
def test_one_reader_refuses_what_is_no_json_value(text: str, words: str) -> None:
    with pytest.raises(DataError) as refused:
        json_value(text, Path("f"), "line 3")
    assert str(refused.value).startswith(words)


def test_one_reader_reads_whole_pairs() -> None:
    assert json_value('{"a": "\\ud83d\\ude00"}', Path("f")) == {"a": "😀"}
    assert json_value('"\\\\ud83d"', Path("f")) == "\\ud83d"


@pytest.mark.parametrize(
    "text", ["a: 2020-99-99", "a: !!bool x", "a: !!timestamp x", "!!int x", "a: !!float ''", "[" * 3_000]
)
def test_one_reader_refuses_yaml_that_its_library_trips_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    dates = "unknown key"  # a config has none, so that this is a string
    with pytest.raises(ConfigError, match=rf"run\.yaml: (a: {dates}|is not YAML)"):
        load(tmp_path / "run.yaml")
    with pytest.raises(DataError, match=r"run\.yaml: is no YAML"):
        read_templates(tmp_path / "run.yaml")


# --- everything reads through it --------------------------------------------------------------------------

TEMPLATES = """
templates:
  1: !Template
    answer_choices: "Yes ||| No"
    jinja: "{{ premise }} ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata {original_task: true}
    name: n
"""
TASK = {
    "Categories": ["c"],
    "Definition": ["Repeat."],
    "Positive Examples": [],
    "Instances": [{"id": "1", "input": "a\u2028b", "output": ["c\x85d"]}],
}
PREDICTION = {
    "Task": "t",
    "Categories": [],
    "Definition": [""],
    "Positive Examples": [],
    "Instance": {"id": "1", "input": "a\u2028b", "output": ["c\x85d"]},
    "Prediction": "e\x0cf",
}


def _dump(*values: Any) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\r\n" for value in values)


def _sni(folder: Path, encode: Callable[[str], bytes]) -> None:
    for path, text in (("tasks/t.json", _dump(TASK)), ("splits/default/test_tasks.txt", "\r\nt\r\n")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode(text))
    dataset = SniDataset(folder)
    (example,) = dataset.load(*dataset.names("test")).examples
    assert (example.input, example.targets) == ("a\u2028b", ("c\x85d",))


def _p3(folder: Path, encode: Callable[[str], bytes]) -> None:
    rows = _dump({"premise": "a\u2028b", "label": 1})
    train = _dump({"inputs_pretokenized": "a\u2028b", "targets_pretokenized": "c"})
    files = {"eval/super_glue_rte.jsonl": rows, "train/super_glue_rte_n.jsonl": train}
    for path, text in (files | {"templates/super_glue/rte/templates.yaml": TEMPLATES}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode(text))
    dataset = P3Dataset(folder, "all")
    assert dataset.eval_tasks("super_glue_rte")[0].examples[0].input == "a\u2028b"
    assert dataset.train_tasks(dataset.train_sets()[0])[0].examples[0].input == "a\u2028b"


def _c4(folder: Path, encode: Callable[[str], bytes]) -> None:
    (folder / "c.json.gz").write_bytes(gzip.compress(encode(_dump({"text": "a\u2028b"}, {"text": "c"}))))
    assert list(documents([folder / "c.json.gz"])) == ["a\u2028b", "c"]


def _predictions(folder: Path, encode: Callable[[str], bytes]) -> None:
    (folder / "predictions.jsonl").write_bytes(encode(_dump(PREDICTION, PREDICTION)))
    first, second = read_predictions(folder / "predictions.jsonl")
    assert first == second and first.text == "e\x0cf"


def _config(folder: Path, encode: Callable[[str], bytes]) -> None:
    (folder / "run.yaml").write_bytes(
        encode(yaml.safe_dump(CONFIG | {"output": "ä"}, allow_unicode=True, line_break="\r\n"))
    )
    assert load(folder / "run.yaml").output == "ä"


@pytest.mark.parametrize("reader", [_sni, _p3, _c4, _predictions, _config])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_reader_serves_every_file(reader: Any, encoding: str, tmp_path: Path) -> None:
    reader(tmp_path, lambda text: text.encode(encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_reader_serves_inputs_and_standard_input(
    encoding: str, tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"red wolf{sign} saw dog" for sign in NOT_ENDS]
    data = _dump(*({"input": one} for one in texts)).encode(encoding)
    file = tmp_path / "inputs.jsonl"
    file.write_bytes(data)
    arguments = [part for text in texts for part in ("--input", text)]
    expected = tagi("run", INSTRUCTION, *arguments, "--checkpoint", checkpoint).out
    assert tagi("run", INSTRUCTION, "--inputs", file, "--checkpoint", checkpoint).out == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii", errors="strict"))
    assert tagi("run", INSTRUCTION, "--inputs", "-", "--checkpoint", checkpoint).out == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"input": "caf\xe9 dog"}', "line 1: is not UTF-8 (byte 14)"),
        (b'{"input": "dog \\ud83d"}', "line 1, input: holds half of a surrogate pair"),
        (b"\xff\xfe{\0}\0", "line 1, input: is missing"),
    ],
)
def test_one_reader_refuses_inputs_by_line(
    data: bytes, words: str, tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    mistake(tagi("run", INSTRUCTION, "--inputs", tmp_path / "a.jsonl"), words)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="strict"))
    mistake(tagi("run", INSTRUCTION, "--inputs", "-"), f"standard input: {words}")
