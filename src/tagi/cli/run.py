"""`tagi run`: solve inputs of one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, Json, Positives, bar, note, open_tagi, print_json
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.data.types import Instruction
    from tagi.infer.engine import Tagi
    from tagi.model.adapter import TaskAdapter

EXAMPLE = 'Example: tagi run "Keep only the animals, then reverse the list." --input "red wolf saw dog plum"'
CHUNK = 256
"""Inputs between two movements of the bar."""

Solve = Callable[[Sequence[str]], list[str]]


def run(
    instruction: Annotated[str | None, typer.Argument(help="What to do, in plain English.")] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TEXT", help="An input; may be given several times."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help='A file of lines {"input": "..."}; - is stdin.'),
    ] = None,
    positives: Positives = None,
    checkpoint: Checkpoint = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `tagi adapt` or PEFT wrote, in place of an instruction."),
    ] = None,
    backbone: Backbone = None,
    as_json: Json = False,
) -> None:
    """Solve inputs of one task: one answer a line on stdout, remarks on stderr."""
    from tagi.cli.inputs import read_inputs

    source = _source(instruction, positives, adapter)
    inputs = [*(texts or ()), *(read_inputs(file) if file is not None else ())]
    if not inputs:
        raise InputError("there is no input: give --input TEXT or --inputs FILE")
    tagi = open_tagi(checkpoint, backbone)
    began = time.perf_counter()
    told, solve = _solver(tagi, source)
    adapted = time.perf_counter()
    answers = _solve_all(solve, inputs)
    solved = time.perf_counter()
    notes = tagi.notes(told, inputs)
    for text in notes:
        note(text)
    if not as_json:
        typer.echo("\n".join(answers))
        return
    print_json(
        {
            "answers": answers,
            "n": len(answers),
            "notes": notes,
            "method": tagi.config.method,
            "adapt_seconds": adapted - began,
            "generate_seconds": solved - adapted,
        }
    )


def _source(definition: str | None, positives: Sequence[str] | None, adapter: Path | None) -> Instruction | Path:
    """The instruction given, or the folder of the adapter that stands in its place."""
    from tagi.cli.inputs import read_instruction

    if definition is not None and adapter is None:
        return read_instruction(definition, positives)
    if adapter is None or definition is not None:
        raise InputError("give either an instruction or --adapter DIR")
    if positives:
        raise InputError("--positive belongs to an instruction; an adapter has read its own already")
    return adapter


def _solver(tagi: Tagi, source: Instruction | Path) -> tuple[Instruction | None, Solve]:
    """The instruction, if one was read, and what answers inputs; whatever can be done once per task is done here."""
    if not isinstance(source, Path) and not tagi.model.method.adapts:
        return source, lambda inputs: tagi.solve(source, inputs)
    adapter = tagi.load_adapter(source) if isinstance(source, Path) else tagi.adapt(source)
    told = source if not isinstance(source, Path) else _instruction_of(adapter)
    return told, lambda inputs: tagi.generate(inputs, adapter)


def _solve_all(solve: Solve, inputs: Sequence[str]) -> list[str]:
    answers: list[str] = []
    with bar("solving") as report:
        while len(answers) < len(inputs):
            answers += solve(inputs[len(answers) : len(answers) + CHUNK])
            report(len(answers), len(inputs))
    return answers


def _instruction_of(adapter: TaskAdapter) -> Instruction | None:
    """What a saved adapter was written from; none for a LoRA that was trained elsewhere."""
    from tagi.data.types import Demonstration, Instruction

    origin = adapter.origins[0]
    if not origin.definition:
        return None
    return Instruction(origin.definition, tuple(Demonstration(*pair) for pair in origin.positives))
