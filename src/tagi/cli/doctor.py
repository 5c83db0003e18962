"""`tagi doctor`: what this installation can do, and how to mend what it cannot."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from tagi.bundled import default_checkpoint
from tagi.cli.common import Json, mark, print_json, stdout
from tagi.errors import CheckpointError, TagiError

EXAMPLE = "Example: tagi doctor"
PACKAGES = ("tagi", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "datasets", "rouge-score")
LEAST_DISK = 1e9


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `mend` says what to do where something is broken."""

    name: str
    value: str
    mend: str | None = None


def doctor(as_json: Json = False) -> None:
    """Check versions, processor, devices, disk and the bundled checkpoint; no network is touched."""
    from rich.table import Table
    from rich.text import Text

    checks, console, table = list(_checks()), stdout(), Table.grid(padding=(0, 2))
    broken = [check for check in checks if check.mend is not None]
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            table.add_row(mark(console, check.mend is None), check.name, check.value)
            if check.mend is not None:
                table.add_row("", "", Text(check.mend, style="bold"))
        console.print(table)
    if broken:
        raise typer.Exit(1)


def _checks() -> Iterator[Check]:
    from importlib import metadata

    import torch

    yield Check("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield Check(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "is not installed", f"pip install {package}")
    yield Check("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    found = torch.cpu.get_capabilities()
    fast = [name for name in ("amx_bf16", "avx512_bf16") if found.get(name)]
    hint = f"bf16 is quick ({fast[0]})" if fast else "bf16 saves memory, but no time"
    yield Check("processor", f"{torch.backends.cpu.get_cpu_capability()}, {hint}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Check("devices", ", ".join(["cpu", *names]))
    free = shutil.disk_usage(Path.cwd()).free
    mend = "free some space, or work in another folder" if free < LEAST_DISK else None
    yield Check("disk", f"{free / 1e9:,.1f} GB free here", mend)
    yield _language_model()
    yield _bundled()


def _language_model() -> Check:
    """Where the default's language model lies, as it was published and as it was converted."""
    from tagi.backbones.gguf import INSTALL, smollm2
    from tagi.backbones.language_model import SMOLLM2, find_language_model

    if (file := smollm2()) is None:
        return Check(SMOLLM2, "is not installed", INSTALL)
    try:
        return Check(SMOLLM2, f"{file}, converted in {find_language_model(SMOLLM2)}")
    except TagiError as error:
        return Check(SMOLLM2, str(error), "mend what it says, or set XDG_CACHE_HOME to a folder with room")


def _bundled() -> Check:
    """Whether the default checkpoint is there, opens, and answers."""
    from tagi.infer.engine import Tagi

    name = "bundled checkpoint"
    try:
        folder = default_checkpoint()
        tagi = Tagi.from_pretrained(folder)
    except CheckpointError as error:
        return Check(name, str(error), "mend what it says, or install tagi again: the checkpoint is part of it")
    return Check(name, f"opens ({tagi.config.method}, {tagi.fingerprint()})")
