"""Files of inputs that a person gives, JSON lines or a table: what `tagi run --inputs` and the server's page read."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import AfterValidator

from tagi.data.records import Record, parse_json, written
from tagi.errors import DataError
from tagi.reading import read_lines, read_text


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an inputs file: an input, and what to do with it where the line says so itself."""

    number: int
    input: str
    instruction: str | None


def read_inputs(path: Path, stream: BinaryIO | None = None) -> list[Line]:
    """The lines of a file with one `{"input": ..., "instruction": ...}` a line, of which the second may be absent or
    null, and others are ignored; or of a `.csv` with columns of these names.

    Args:
        stream: what is read instead; `path` then only names it.

    Raises:
        DataError: the file cannot be read, or one of its lines; names file, line and field.
    """
    lines = list(_table(path, stream) if path.suffix.lower() == ".csv" else read_lines(path, stream))
    if not lines:
        raise DataError(path, "", "holds no input")
    read = ((number, parse_json(_Line, text, path, within=f"line {number}")) for number, text in lines)
    return [Line(number, one.input, one.instruction) for number, one in read]


def _table(path: Path, stream: BinaryIO | None) -> Iterator[tuple[int, str]]:
    """The rows of a CSV as JSON objects, with the numbers of their last lines; an empty instruction is none.

    Raises:
        DataError: it cannot be read, or has no column `input`.
    """
    rows = csv.DictReader(io.StringIO(read_text(path, stream), newline=""))
    if "input" not in (rows.fieldnames or ()):
        raise DataError(path, "line 1", "has no column named input")
    for row in rows:
        yield rows.line_num, json.dumps({"input": row["input"] or "", "instruction": row.get("instruction") or None})


class _Line(Record):
    input: Annotated[str, AfterValidator(written)]
    instruction: Annotated[str, AfterValidator(written)] | None = None
