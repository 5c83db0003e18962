"""What a person gives on the command line: an instruction with worked examples, and inputs."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from tagi.data.records import Record, parse_json, written
from tagi.data.types import Demonstration, Instruction
from tagi.errors import DataError, InputError
from tagi.reading import read_lines, read_text


def read_instruction(definition: str, demonstrations: Sequence[str] | None) -> Instruction:
    """An instruction and its worked examples, each written `input => output`.

    Raises:
        InputError: the definition is empty, or an example is written otherwise.
    """
    if not definition.strip():
        raise InputError("the instruction is empty")
    shown: list[Demonstration] = []
    for text in demonstrations or ():
        source, _, target = (part.strip() for part in text.partition("=>"))
        if not (source and target):
            raise InputError(f'--example {text!r}: must be written "input => output", with both sides filled')
        shown.append(Demonstration(source, target))
    return Instruction(definition, tuple(shown))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an inputs file: an input, and what to do with it where the line says so itself."""

    number: int
    input: str
    instruction: str | None


def read_inputs(path: Path) -> list[str]:
    """The inputs of such a file alone, see `read_file`."""
    return [line.input for line in read_file(path)]


def read_file(path: Path) -> list[Line]:
    """The lines of a file with one `{"input": ..., "instruction": ...}` a line, of which the second may be absent or
    null, and others are ignored; or of a `.csv` with columns of these names. The path `-` is standard input.

    Raises:
        DataError: the file cannot be read, or one of its lines; names file, line and field.
    """
    stdin = str(path) == "-"
    if stdin and sys.stdin is None:
        raise DataError("standard input", "", "is closed")
    path = Path("standard input") if stdin else path
    lines = list(
        _table(path) if path.suffix.lower() == ".csv" else read_lines(path, sys.stdin.buffer if stdin else None)
    )
    if not lines:
        raise DataError(path, "", "holds no input")
    read = ((number, parse_json(_Line, text, path, within=f"line {number}")) for number, text in lines)
    return [Line(number, one.input, one.instruction) for number, one in read]


def _table(path: Path) -> Iterator[tuple[int, str]]:
    """The rows of a CSV as JSON objects, with the numbers of their last lines; an empty instruction is none.

    Raises:
        DataError: it cannot be read, or has no column `input`.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if "input" not in (rows.fieldnames or ()):
        raise DataError(path, "line 1", "has no column named input")
    for row in rows:
        yield rows.line_num, json.dumps({"input": row["input"] or "", "instruction": row.get("instruction") or None})


class _Line(Record):
    input: Annotated[str, AfterValidator(written)]
    instruction: Annotated[str, AfterValidator(written)] | None = None
