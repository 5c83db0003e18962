"""Reading text that other people wrote: the one place where bytes become characters, lines and JSON values.

UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one, any of them packed by gzip. Lines end in LF, CR LF
or CR and in nothing else: U+2028, U+2029 and U+0085 are characters of a text like any other, as in JSON. Everything
that cannot be read is one `DataError` that names the file and the line or the field.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import yaml

from tagi.errors import DataError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_MARK = "\ufeff"
NODES, DEPTH = 100_000, 100
"""Values of a YAML text when its aliases are written out, and how deep they are nested, at most."""


def read_text(path: Path, stream: BinaryIO | None = None) -> str:
    """The whole of a text file.

    Args:
        stream: what is read instead; `path` then only names it, such as "standard input".

    Raises:
        DataError: it cannot be read or unpacked, or is no text.
    """
    with _opened(path, stream) as (file, encoding):
        return _decoded(file.read(), encoding, path, "").removeprefix(_MARK)


def read_lines(path: Path, stream: BinaryIO | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, one at a time without their ends, with their numbers from 1.

    A byte-order mark is skipped at the beginning of every line, since joined files have some in the middle.

    Args:
        stream: see `read_text`.

    Raises:
        DataError: see `read_text`; names the line.
    """
    for number, line in enumerate(_lines(path, stream), start=1):
        text = _decoded(line, "utf-8", path, f"line {number}") if isinstance(line, bytes) else line
        if (text := text.removeprefix(_MARK)).strip():
            yield number, text


def json_value(text: str, path: Path, within: str = "") -> Any:
    """A JSON text as Python values.

    Args:
        path: the file that errors name.
        within: where in the file the text stands, such as "line 3".

    Raises:
        DataError: it is no JSON, holds a number that JSON does not have (NaN), is nested too deep, or holds half of a
            surrogate pair, which no tokenizer and no file can take; names the field.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
        half = _half(value) if "\\ud" in text.lower() else None  # nothing else writes a surrogate, and this is quick
    except ValueError as error:
        raise DataError(path, within, f"is not JSON ({error})") from error
    except RecursionError as error:
        raise DataError(path, within, "is not JSON that we read (nested too deep)") from error
    if half is not None:
        field, sign = half
        where = ", ".join(part for part in (within, field.lstrip(".")) if part)
        raise DataError(path, where, f"holds half of a surrogate pair (\\u{ord(sign):04x}), which is no character")
    return value


def yaml_value(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """A YAML text as Python values.

    Raises:
        YAMLError: it is no YAML, PyYAML trips over a value of another form than its tag or its looks promise, or its
            aliases make more of it than any file that we read is.
    """
    try:
        value = yaml.load(text, loader)
        left = _counted_down(value, NODES, DEPTH)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, LookupError, AttributeError) as error:  # as `2020-99-99` and `!!bool x`
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {error})") from error
    if left < 0:
        raise yaml.YAMLError(f"it holds more than {NODES:,} values when its aliases are written out")
    return value


def _counted_down(value: Any, left: int, depth: int) -> int:
    """What is left of a count when every value inside has been counted, below 0 where it did not suffice; a
    `RecursionError` deeper than `depth`, as what holds itself always is."""
    if not depth:
        raise RecursionError
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inside:
        if left < 0:
            break
        left = _counted_down(one, left, depth - 1)
    return left - 1


def _half(value: Any) -> tuple[str, str] | None:
    r"""The first half of a surrogate pair in a JSON value, as escapes can write one (`\ud83d` alone), and its field."""
    signs = ((field, sign) for field, one in _strings(value, "") for sign in one)
    return next((found for found in signs if "\ud800" <= found[1] <= "\udfff"), None)


def _strings(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, the keys among them, with the field that it stands in."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _strings(one, f"{field}[{number}]")
    elif isinstance(value, dict):
        for name, one in value.items():
            yield field, name
            yield from _strings(one, f"{field}.{name}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _lines(path: Path, stream: BinaryIO | None) -> Iterator[bytes | str]:
    """The lines without their ends, blank ones too: of UTF-8 as bytes, one at a time, of other encodings decoded."""
    with _opened(path, stream) as (file, encoding):
        if encoding != "utf-8":
            yield from _decoded(file.read(), encoding, path, "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
            return
        for line in file:
            whole = line.removesuffix(b"\n").removesuffix(b"\r")
            yield from whole.split(b"\r") if b"\r" in whole else (whole,)


def _decoded(data: bytes, encoding: str, path: Path, within: str) -> str:
    if encoding == "utf-8" and (place := data.find(b"\0")) >= 0:
        raise DataError(path, within, f"is no text (byte {place} is NUL; UTF-16 and UTF-32 need a byte-order mark)")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(path, within, f"is not {encoding.upper()} (byte {error.start})") from error
    if (place := text.find("\0")) >= 0:
        raise DataError(path, within, f"is no text (character {place} is NUL)")
    return text


@contextmanager
def _opened(path: Path, stream: BinaryIO | None) -> Iterator[tuple[BinaryIO, str]]:
    """A file, unpacked where it is packed, and its encoding; whatever fails while it is read is one sentence."""
    try:
        with _bytes(path, stream) as raw:
            packed = _head(raw).startswith(_GZIP)  # as no text begins, whatever the file's name
            with cast(BinaryIO, gzip.open(raw)) if packed else nullcontext(raw) as file:
                head = _head(file)
                yield file, next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(path, "", f"is a damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror or error})") from error


def _bytes(path: Path, stream: BinaryIO | None) -> BinaryIO:
    """What is read, from its beginning; a pipe is read to its end, so that one can look at its head and go back."""
    try:
        opened = stream if stream is not None else path.open("rb")
    except ValueError as error:
        raise DataError(path, "", f"is no name of a file ({error})") from error
    if stream is None and opened.seekable():
        return opened
    with opened if stream is None else nullcontext():
        return io.BytesIO(opened.read())


def _head(file: BinaryIO) -> bytes:
    head = file.read(max(len(mark) for mark, _ in _MARKS))
    file.seek(0)
    return head
