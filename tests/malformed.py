"""Malformed files: valid ones with bytes or values changed, and what a reader says of them."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tagi.errors import TagiError


def refusal(read: Callable[[], object]) -> str:
    """The sentence that a reader refuses something with; empty where it takes it. Every other error passes."""
    try:
        read()
    except TagiError as error:
        return str(error)
    return ""


# --- changes ----------------------------------------------------------------------------------------------

Change = Callable[[bytes], bytes]
_WRONG: list[Any] = [None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", " ", "\ud83d", "\0", [], {}, [[]]]
_DEEP: Any = json.loads("[" * 150 + "]" * 150)
_INSERTED = [
    *(b"\0", b"\xff", b"\xed\xa0\xbd", b"\\ud83d", b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xa8", b"[" * 2_000),
    *(b'"', b"\n\n", b"NaN", b"{{", b"{% ", b"- ", b"&a [*a, *a]", b"!!python/none ", b"2020-99-99", b": "),
]


def _spliced(place: float, cut: int, new: bytes) -> Change:
    """Bytes taken out and put in at a place of the file, from 0 to 1."""

    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + new + data[at + cut :]

    return change


def _cut(place: float) -> Change:
    return lambda data: data[: int(place * len(data))]


def _replaced(pick: int, value: Any, drop: bool) -> Change:
    """One value of a JSON file or of one of its lines replaced or dropped; other files stay."""

    def change(data: bytes) -> bytes:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            try:
                lines = [json.loads(data)]
            except ValueError:
                return data
        places = list(_places(lines))
        if places:
            holder, key = places[pick % len(places)]
            if drop:
                del holder[key]
            else:
                holder[key] = value
        return "\n".join(json.dumps(line) for line in lines).encode()

    return change


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value that something stands in."""
    for key, one in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(one, dict | list):
            yield from _places(one)


def _header(pick: int, value: Any, drop: bool) -> Change:
    """A safetensors header with one value replaced; its length is true again."""

    def change(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = _replaced(pick, value, drop)(data[8:end])
        return len(header).to_bytes(8, "little") + header + data[end:]

    return change


def _length(length: int) -> Change:
    """A safetensors file that states another length of its header."""
    return lambda data: length.to_bytes(8, "little") + data[8:]


_values = st.sampled_from([*_WRONG, _DEEP, "x" * 2_000, [0, 10**12], [8, 4], "BOOL", "F8_E4M3"])
text_changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(_spliced, st.floats(0, 1), st.integers(0, 6), st.sampled_from(_INSERTED) | st.binary(max_size=4)),
    st.builds(_cut, st.floats(0, 1)),
    st.builds(_replaced, st.integers(0, 10_000), _values, st.booleans()),
    st.just(gzip.compress),
    st.sampled_from(["utf-16", "utf-32", "utf-16-le"]).map(lambda name: lambda data: data.decode().encode(name)),
)
"""Of text files."""
tensor_changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(_spliced, st.floats(0, 1), st.integers(0, 6), st.binary(max_size=4)),
    st.builds(_cut, st.floats(0, 1)),
    st.builds(_header, st.integers(0, 10_000), _values, st.booleans()),
    st.builds(_length, st.sampled_from([0, 1, 7, 2**31, 2**62, 2**64 - 1])),
)
"""Of safetensors files."""
