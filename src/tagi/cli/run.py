"""`tagi run`: solve inputs of one task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import (
    Backbone,
    Checkpoint,
    Examples,
    Json,
    bar,
    note,
    one_line,
    open_tagi,
    print_json,
    uncollected,
)
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.cli.solving import Asked, Solver
    from tagi.infer.answers import Answer

EXAMPLE = 'Example: tagi run "Name the city in the text." --input "We met in Oslo last May."'


def run(
    instruction: Annotated[str | None, typer.Argument(help="What to do, in plain English.")] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TEXT", help="An input; may be given several times."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FILE",
            help='Lines {"input": "..."}, each with its "instruction" if need be, or a .csv of these; - is stdin.',
        ),
    ] = None,
    demonstrations: Examples = None,
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
    choice: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Answer with the likeliest of these; may be given several times."),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer to a single input as it grows.")] = False,
    as_json: Json = False,
) -> None:
    """Solve inputs: one answer a line on stdout, its line breaks written out (\\n), remarks on stderr.

    A line of --inputs may bring an instruction of its own; --json gives the answers as they are.
    """
    with uncollected():
        from tagi.cli.solving import Solver
        from tagi.infer.search import GenerationConfig

    decoding = GenerationConfig(
        beams=beams, temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_tokens, stop=tuple(stop or ())
    )
    asked = _asked(instruction, demonstrations, adapter, texts or (), file)
    if stream and (as_json or len(asked) > 1):
        raise InputError("--stream shows one answer as it grows: give a single input, and no --json")
    if choice and (stream or decoding != GenerationConfig()):
        raise InputError("--choice takes the likeliest of given answers: leave out --stream and options of the search")
    tagi = open_tagi(checkpoint, backbone, len(demonstrations) if demonstrations else None)
    solver = Solver(tagi, tagi.load_adapter(adapter) if adapter is not None else None, decoding)
    if choice:
        _choose(solver, asked, choice, as_json=as_json)
    elif stream:
        for piece in tagi.stream(solver.told(asked[0].instruction), asked[0].text, generation=decoding):
            typer.echo(one_line(piece), nl=False)
        typer.echo()
        note(*solver.notes(asked))
    else:
        _solve(solver, asked, as_json=as_json)


def _solve(solver: Solver, asked: Sequence[Asked], *, as_json: bool) -> None:
    """The answers, as they come where they are printed."""
    answers: list[Answer] = []
    with bar("solving") as report:
        for some in solver.answers(asked, report):
            answers += some
            if not as_json:
                for one in some:
                    typer.echo(one_line(one.text))
    notes = solver.notes(asked)
    cut = sum(answer.finish_reason == "length" for answer in answers) if solver.generation.stop else 0
    if cut:
        notes.append(f"{cut} of {len(answers)} answers were cut at their last token before a stop string came")
    note(*notes)
    if as_json:
        print_json(
            {
                "answers": [answer.text for answer in answers],
                "confidence": solver.confidence(asked, answers),
                "ended": [answer.finish_reason for answer in answers],
                "n": len(answers),
                "notes": notes,
                "method": solver.tagi.config.method,
                "adapt_seconds": solver.adapt_seconds,
                "generate_seconds": solver.generate_seconds,
            }
        )


def _choose(solver: Solver, asked: Sequence[Asked], choices: Sequence[str], *, as_json: bool) -> None:
    """The likeliest choice of every input, by mean log-likelihood of its tokens."""
    from tagi.infer.choices import likeliest

    scores = solver.scores(asked, [choices] * len(asked))
    answers = [likeliest(choices, each) for each in scores]
    notes = solver.notes(asked)
    note(*notes)
    if as_json:
        print_json({"answers": answers, "scores": scores, "choices": [*choices], "n": len(answers), "notes": notes})
        return
    for text in answers:
        typer.echo(one_line(text))


def _asked(
    definition: str | None,
    demonstrations: Sequence[str] | None,
    adapter: Path | None,
    texts: Sequence[str],
    file: Path | None,
) -> list[Asked]:
    """Every input with its instruction: its line's own, or else that of the command line; none beside an adapter."""
    from tagi.cli.solving import Asked, read_file, read_instruction
    from tagi.data.types import Instruction

    if definition is not None and adapter is not None:
        raise InputError("give either an instruction or --adapter DIR")
    if demonstrations and definition is None:
        raise InputError("--example belongs to an instruction on the command line, and there is none")
    if definition is None and adapter is None and (texts or file is None):
        raise InputError("give an instruction, or --adapter DIR in its place")
    told = read_instruction(definition, demonstrations) if definition is not None else None
    asked = [Asked(text, told) for text in texts]
    for number, line in read_file(file) if file is not None else ():
        where = f"{file}: line {number}: instruction"
        if line.instruction is not None and adapter is not None:
            raise InputError(f"{where}: --adapter has read another; leave out one of the two")
        if line.instruction is None and told is None and adapter is None:
            raise InputError(f"{where}: is missing, and the command line has none either")
        asked.append(Asked(line.input, told if line.instruction is None else Instruction(line.instruction)))
    if not asked:
        raise InputError("there is no input: give --input TEXT or --inputs FILE")
    return asked
