"""`tagi export`: adapters and teachers as files that other libraries open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tagi.bundled import default_checkpoint
from tagi.cli.common import Backbone, Checkpoint, Json, note, open_tagi, print_json, waiting
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.infer.export import Export

app = typer.Typer(help="Write adapters and teachers as files that other libraries open.")

Form = Literal["peft", "gguf", "merged"]
Source = Annotated[Path, typer.Argument(help="An adapter of `tagi adapt`, PEFT's files, or a LoRA bank.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write.")]
Teacher = Annotated[str | None, typer.Option(metavar="GROUP", help="Which teacher of the bank.")]
InputsFile = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE",
        help='Lines {"input": "..."} on which to measure what is lost without fusion; - is stdin (default: random).',
    ),
]


def _command(form: Form) -> Callable[..., None]:
    def export(
        source: Source,
        output: Output,
        teacher: Teacher = None,
        inputs: InputsFile = None,
        checkpoint: Checkpoint = None,
        backbone: Backbone = None,
        as_json: Json = False,
    ) -> None:
        from tagi.infer.export import Lost, from_bank, write_gguf, write_merged, write_peft
        from tagi.model.bank import MANIFEST, read_manifest

        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"{output}: exists; choose another folder")
        if (source / MANIFEST).exists():
            if teacher is None:
                groups = ", ".join(one.group for one in read_manifest(source).teachers)
                raise InputError(f"--teacher: is missing; the bank has {groups}")
            found = from_bank(source, teacher, backbone)
        elif teacher is not None:
            raise InputError(f"--teacher: {source} is no LoRA bank ({MANIFEST} is missing)")
        else:
            found = _adapter(source, inputs, checkpoint, backbone, alone=form == "merged")
        if found.lost is not None:
            note(str(found.lost))
        elif inputs is not None:
            note("nothing is lost, so --inputs were not answered")
        {"peft": write_peft, "gguf": write_gguf, "merged": write_merged}[form](found, output)
        if as_json:
            lost = asdict(found.lost) if found.lost is not None else dict.fromkeys(field.name for field in fields(Lost))
            print_json({"output": str(output), "base": found.base, "sites": len(found.lora)} | lost)
        else:
            relation = "merged into" if form == "merged" else "of"
            typer.echo(f"{output}: LoRA of {len(found.lora)} projections, {relation} {found.base}")

    return export


FORMS: tuple[tuple[Form, str, str], ...] = (
    ("peft", "Write a LoRA in PEFT's layout, for `PeftModel.from_pretrained`.", "animals-peft"),
    ("gguf", "Write a LoRA in llama.cpp's format, for `llama-server --lora`.", "animals-gguf"),
    ("merged", "Write the language model with a LoRA added in, for `transformers`.", "animals-t5"),
)
for _form, _help, _folder in FORMS:
    _example = f"Example: tagi export {_form} animals -o {_folder}"
    app.command(_form, help=_help, epilog=_example)(_command(_form))


def _adapter(source: Path, file: Path | None, checkpoint: str | None, backbone: str | None, *, alone: bool) -> Export:
    from tagi.backbones.files import locate
    from tagi.backbones.language_model import hugging_face
    from tagi.cli.solving import read_file
    from tagi.infer.export import Inputs, from_adapter
    from tagi.model.checkpoint import base_source

    chosen = checkpoint or default_checkpoint()
    inputs = Inputs([line.input for _, line in read_file(file)], str(file)) if file is not None else None
    tagi = open_tagi(checkpoint, backbone)
    with waiting("measuring what is lost"):
        base = hugging_face(backbone or base_source(chosen))
        return from_adapter(tagi, source, base, locate(chosen), inputs, alone=alone)
