"""The blocks of the pages, who runs them, and a shell to run them in."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CODE = ("sh", "bash", "console", "python")
"""What is to run, of the blocks of a page."""


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    section: str
    """The heading that it stands under."""

    @property
    def script(self) -> str:
        """What is typed: of a console the lines behind `$` and those indented below them, else all."""
        if self.language != "console":
            return self.text
        return re.sub(r"^(?:\$ |(?= {4}))|^(?!\$ | {4}).*\n", "", self.text, flags=re.MULTILINE)


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


CLAIMED = Counter[tuple[str, Block]]()
"""How many runners have each block of a page."""


def claim(page: str, *languages: str, section: str = "") -> list[Block]:
    """The blocks of a page, perhaps of one section only, that the calling test runs, and no other."""
    chosen = [
        one for one in blocks(ROOT / page) if one.language in (languages or CODE) and section in ("", one.section)
    ]
    assert chosen, f"{page} has no such block"
    CLAIMED.update((page, one) for one in chosen)
    return chosen


def shell(script: str, folder: Path, sources: Path = ROOT / "src", **variables: str) -> str:
    """Run a script of a page in a folder; `python` and the programs of its packages are those of the tests, `tagi` is
    that of the sources. Gives its output."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    calls = {
        "tagi": '-c "from tagi.cli.main import run; run()"',
        "pip": "-m pip",
        "accelerate": "-m accelerate.commands.accelerate_cli",
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
