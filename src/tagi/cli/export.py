"""`tagi export`: adapters and teachers as files that other libraries open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, Json, default_checkpoint, note, open_tagi, print_json
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.model.backbone import Modules

app = typer.Typer(help="Write adapters and teachers as files that other libraries open.")

EXAMPLE = "Example: tagi export peft animals -o animals-peft"


@dataclass(frozen=True, slots=True)
class Exported:
    """A LoRA on its way out."""

    lora: Modules
    base: str
    about: str
    lost: str | None


@app.command(epilog=EXAMPLE)
def peft(
    source: Annotated[Path, typer.Argument(help="An adapter of `tagi adapt`, or a teacher bank.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write PEFT's files.")],
    teacher: Annotated[str | None, typer.Option(metavar="GROUP", help="Which teacher of the bank.")] = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    as_json: Json = False,
) -> None:
    """Write a LoRA in PEFT's layout, for `PeftModel.from_pretrained`."""
    from tagi.model.bank import MANIFEST
    from tagi.model.peft_files import save_peft

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists; choose another folder")
    if (source / MANIFEST).exists():
        found = _teacher(source, teacher, backbone)
    elif teacher is not None:
        raise InputError(f"--teacher: {source} is no teacher bank ({MANIFEST} is missing)")
    else:
        found = _adapter(source, checkpoint, backbone)
    if found.lost is not None:
        note(found.lost)
    save_peft(found.lora, found.base, output, " ".join(filter(None, (found.about, found.lost))))
    if as_json:
        print_json({"output": str(output), "base": found.base, "sites": len(found.lora), "lost": found.lost})
        return
    typer.echo(f"{output}: LoRA of {len(found.lora)} projections of {found.base}")


def _teacher(source: Path, group: str | None, backbone: str | None) -> Exported:
    from tagi.model import bank as banks
    from tagi.model import checkpoint
    from tagi.model.t5_hf import load_t5

    manifest = banks.read_manifest(source)
    if group is None:
        groups = ", ".join(one.group for one in manifest.teachers)
        raise InputError(f"--teacher: is missing; the bank has {groups}")
    base = backbone or checkpoint.base_source(manifest.base)
    model = load_t5(base)
    bank = banks.load(source, model.sites())
    banks.check(bank, source, checkpoint.fingerprint(model), manifest.rank)
    about = f"The teacher LoRA of the group {group!r}, trained by gradient on its tasks."
    return Exported(bank.teacher(group), base, about, None)


def _adapter(source: Path, chosen: str | None, backbone: str | None) -> Exported:
    from tagi.model import checkpoint

    tagi = open_tagi(chosen, backbone)
    adapter = tagi.load_adapter(source)
    lora = {site: factors for site, factors in adapter.modules.items() if site.place in ("q", "v")}
    if not lora:
        raise InputError(f"{source}: method {tagi.config.method} writes no LoRA; there is nothing that PEFT could wear")
    method, lost = tagi.model.method, None
    if method.fuses_encoder or method.fuses_decoder:
        lost = "the encoded instruction is not in PEFT's files: this is the LoRA alone, which answers differently"
    about = f"A task adapter that {method.title} wrote from an instruction."
    base = backbone or checkpoint.base_source(chosen or default_checkpoint())
    return Exported(lora, base, about, lost)
