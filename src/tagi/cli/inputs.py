"""What a person gives on the command line: an instruction with worked examples, and inputs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from tagi.data.records import Record, parse_json
from tagi.data.types import Demonstration, Instruction
from tagi.errors import DataError, InputError
from tagi.reading import read_lines


def read_instruction(definition: str, positives: Sequence[str] | None) -> Instruction:
    """An instruction and its worked examples, each written `input => output`.

    Raises:
        InputError: the definition is empty, or an example is written otherwise.
    """
    if not definition.strip():
        raise InputError("the instruction is empty")
    return Instruction(definition, tuple(_demonstration(text) for text in positives or ()))


def read_inputs(path: Path) -> list[str]:
    """The inputs of a file with one `{"input": ...}` a line; the path `-` is standard input.

    Raises:
        DataError: the file cannot be read, or one of its lines; names file, line and field.
    """
    if str(path) == "-":
        path, lines = Path("standard input"), list(read_lines(Path("standard input"), sys.stdin.buffer))
    else:
        lines = list(read_lines(path))
    if not lines:
        raise DataError(path, "", "holds no input")
    return [parse_json(_Line, line, path, within=f"line {number}").input for number, line in lines]


def _is_written(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


class _Line(Record):
    input: Annotated[str, AfterValidator(_is_written)]


def _demonstration(text: str) -> Demonstration:
    source, _, target = (part.strip() for part in text.partition("=>"))
    if not (source and target):
        raise InputError(f'--positive {text!r}: must be written "input => output", with both sides filled')
    return Demonstration(source, target)
