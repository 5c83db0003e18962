"""The blocks of a page, and a shell to run them in."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    section: str
    """The heading that it stands under."""


def blocks(page: Path) -> list[Block]:
    """Those of a page, in order."""
    found, section = list[Block](), ""
    for heading, language, text in re.findall(
        r"^(?:#+ ([^\n]*)|```(\w*)\n(.*?)^```)$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        section = heading or section
        if not heading:
            found.append(Block(language, text, section))
    return found


def shell(script: str, folder: Path, sources: Path = ROOT / "src", **variables: str) -> str:
    """Run a script of a page in a folder; `tagi`, `python` and `pytest` are those of the sources. Gives its output."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    calls = {
        "tagi": '-c "from tagi.cli.main import run; run()"',
        "pytest": "-m pytest -q -p no:cacheprovider",
        "python": "",
    }
    for name, call in calls.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(sources), **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
