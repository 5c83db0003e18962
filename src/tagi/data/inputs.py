"""Files of inputs that a person gives, JSON lines or a table: what `tagi run --inputs` and the server's page read."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tagi.data.records import Record, Written, parse_json
from tagi.errors import DataError
from tagi.reading import read_lines, read_text


class Line(Record):
    """A line of an inputs file: an input, and what to do with it where the line says so itself."""

    input: Written
    instruction: Written | None = None


def read_inputs(path: Path, stream: BinaryIO | None = None) -> list[tuple[int, Line]]:
    """The lines of a file, with their numbers: one `{"input": ..., "instruction": ...}` a line, of which the second may
    be absent or null, and others are ignored; or of a `.csv` with columns of these names.

    Args:
        stream: what is read instead; `path` then only names it.

    Raises:
        DataError: the file cannot be read, or one of its lines; names file, line and field.
    """
    lines = list(_table(path, stream) if path.suffix.lower() == ".csv" else read_lines(path, stream))
    if not lines:
        raise DataError(path, "", "holds no input")
    return [(number, parse_json(Line, text, path, within=f"line {number}")) for number, text in lines]


def _table(path: Path, stream: BinaryIO | None) -> Iterator[tuple[int, str]]:
    """The rows of a CSV as JSON objects, with the numbers of their last lines; an empty instruction is none."""
    rows = csv.DictReader(io.StringIO(read_text(path, stream), newline=""))
    if "input" not in (rows.fieldnames or ()):
        raise DataError(path, "line 1", "has no column named input")
    for row in rows:
        yield rows.line_num, json.dumps({"input": row["input"] or "", "instruction": row.get("instruction") or None})
