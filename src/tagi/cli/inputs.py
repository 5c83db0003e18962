"""What a person gives on the command line: an instruction with worked examples, and inputs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tagi.data import inputs
from tagi.data.inputs import Line
from tagi.data.types import Demonstration, Instruction
from tagi.errors import DataError, InputError


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


def read_file(path: Path) -> list[Line]:
    """The lines of a file, see `tagi.data.inputs.read_inputs`; the path `-` is standard input.

    Raises:
        DataError: the file cannot be read, or one of its lines; names file, line and field.
    """
    if str(path) != "-":
        return inputs.read_inputs(path)
    if sys.stdin is None:
        raise DataError("standard input", "", "is closed")
    return inputs.read_inputs(Path("standard input"), sys.stdin.buffer)
