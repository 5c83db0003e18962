"""`tagi adapt`: one instruction in, one task adapter on disk."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, Examples, Json, note, open_tagi, print_json
from tagi.errors import InputError
from tagi.files import check_replaceable

EXAMPLE = 'Example: tagi adapt "Name the city in the text." -o city'


def adapt(
    instruction: Annotated[str, typer.Argument(help="What to do, in plain English.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the adapter.")],
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Write a task adapter from an instruction: LoRA and the encoded instruction, ready for any input."""
    from tagi.cli.solving import read_instruction
    from tagi.model.adapter import KIND, WEIGHTS

    told = read_instruction(instruction, demonstrations)
    check_replaceable(output, WEIGHTS, KIND)
    if (output / WEIGHTS).exists() and not force:
        raise InputError(f"{output}: already holds an adapter; add --force to replace it")
    tagi = open_tagi(checkpoint, backbone, len(demonstrations) if demonstrations else None)
    began = time.perf_counter()
    adapter = tagi.adapt(told)
    seconds = time.perf_counter() - began
    adapter.save_pretrained(output)
    notes = tagi.notes(told, [])
    note(*notes)
    size = sum(file.stat().st_size for file in output.iterdir())
    if as_json:
        print_json({"adapter": str(output), "bytes": size, "adapt_seconds": seconds, "notes": notes})
        return
    typer.echo(f"{output}: {size / 1e3:,.0f} kB, written from {adapter.instruction.mask.shape[1]} tokens")
    model = f" --checkpoint {shlex.quote(checkpoint)}" if checkpoint else ""
    typer.echo(f'use it: tagi run --adapter {shlex.quote(str(output))}{model} --input "..."')
