"""`tagi run`: solve inputs of one task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, Compile, Json, Positives, bar, note, open_tagi, print_json
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.data.types import Instruction
    from tagi.infer.answers import Answer
    from tagi.infer.engine import Tagi
    from tagi.infer.search import Decoding
    from tagi.model.adapter import TaskAdapter

EXAMPLE = 'Example: tagi run "Keep only the animals, then reverse the list." --input "red wolf saw dog plum"'


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
    beams: Annotated[int, typer.Option(help="Beams of a beam search; 1 is greedy.")] = 1,
    temperature: Annotated[float, typer.Option(help="Draw tokens at this temperature; 0 takes the likeliest.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Tokens of an answer at most (default: as trained).")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this; may be given several times.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer to a single input as it grows.")] = False,
    compiled: Compile = False,
    as_json: Json = False,
) -> None:
    """Solve inputs of one task: one answer a line on stdout, remarks on stderr."""
    from tagi.cli.inputs import read_inputs
    from tagi.infer.search import Decoding

    decoding = Decoding(
        beams=beams, temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens, stop=tuple(stop or ())
    )
    source = _source(instruction, positives, adapter)
    inputs = [*(texts or ()), *(read_inputs(file) if file is not None else ())]
    if not inputs:
        raise InputError("there is no input: give --input TEXT or --inputs FILE")
    if stream and (as_json or len(inputs) > 1):
        raise InputError("--stream shows one answer as it grows: give a single input, and no --json")
    tagi = open_tagi(checkpoint, backbone, compiled=compiled)
    began = time.perf_counter()
    told = _told(tagi, source)
    adapted = time.perf_counter()
    if stream:
        for piece in tagi.stream(told, inputs[0], decoding=decoding):
            typer.echo(piece, nl=False)
        typer.echo()
    with bar("solving") as report:
        answers = [] if stream else tagi.answer(told, inputs, decoding=decoding, progress=report)
    solved = time.perf_counter()
    notes = [*tagi.notes(_instruction_of(told), inputs), *_unstopped(answers, decoding)]
    for text in notes:
        note(text)
    if stream:
        return
    if not as_json:
        typer.echo("\n".join(answer.text for answer in answers))
        return
    print_json(
        {
            "answers": [answer.text for answer in answers],
            "ended": [answer.reason for answer in answers],
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


def _told(tagi: Tagi, source: Instruction | Path) -> Instruction | TaskAdapter:
    """What is known of the task, with all done that can be done once per task."""
    if isinstance(source, Path):
        return tagi.load_adapter(source)
    return tagi.adapt(source) if tagi.model.method.adapts else source


def _unstopped(answers: Sequence[Answer], decoding: Decoding) -> list[str]:
    """A remark where stop strings were given and did not come."""
    cut = sum(answer.reason == "length" for answer in answers) if decoding.stop else 0
    return [f"{cut} of {len(answers)} answers were cut at their last token before a stop string came"] if cut else []


def _instruction_of(told: Instruction | TaskAdapter) -> Instruction | None:
    """The instruction, also of an adapter that was written from one; none of a LoRA that was trained elsewhere."""
    from tagi.data.types import Demonstration, Instruction

    if isinstance(told, Instruction):
        return told
    origin = told.origins[0]
    if not origin.definition:
        return None
    return Instruction(origin.definition, tuple(Demonstration(*pair) for pair in origin.positives))
