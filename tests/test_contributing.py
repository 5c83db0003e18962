"""A stranger's hour: what CONTRIBUTING.md says to write is written into a copy of the sources, and works there."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from blocks import ROOT, blocks, claim, shell

PAGE = ROOT / "CONTRIBUTING.md"
LINES = {"Add a method": 60, "Add a model family": 60, "Add a data source": 80}
COMMANDS = [one for section in LINES for one in claim("CONTRIBUTING.md", "sh", "python", section=section)]
TARGETS = [*claim("README.md", "sh", section="tagi"), *claim("CONTRIBUTING.md", section="Contributing")]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and tests, to be changed; large files by reference."""
    folder = tmp_path / "copy"
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (folder / "src" / "tagi" / "assets").symlink_to(ROOT / "src" / "tagi" / "assets")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def written(section: str, folder: Path) -> int:
    """Write a section's files and apply its changes; gives how many lines that is."""
    lines = list[str]()
    for block in blocks(PAGE):
        if block.section != section:
            continue
        if block.language == "python":
            path, _, text = block.text.partition("\n")
            (folder / path.removeprefix("# ")).write_text(text, encoding="utf-8")
            lines += text.splitlines()
        elif block.language == "diff":
            apply = ["git", "apply", "-"]
            done = subprocess.run(apply, cwd=folder, input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"the page no longer fits the sources: {done.stderr}"
            lines += re.findall(r"^\+(?!\+\+ )", block.text, re.MULTILINE)
    return len(lines)


@pytest.mark.parametrize("section", LINES)
def test_what_is_to_write_fits_the_sources(section: str, copy: Path) -> None:
    assert 0 < written(section, copy) <= LINES[section]


@pytest.mark.slow  # processes that import everything anew, a minute and more each
@pytest.mark.parametrize("section", LINES)
def test_what_was_written_works(section: str, copy: Path) -> None:
    written(section, copy)
    (commands,) = [one.text for one in COMMANDS if one.section == section and one.language == "sh"]
    said = shell(commands, copy, copy / "src")
    if section == "Add a model family":
        assert re.search(r"\d\d passed", said)
    else:
        assert list(copy.glob("runs/*/final/model.safetensors"))


def test_the_layers_are_those_that_are_checked() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [one.text for one in blocks(PAGE) if one.section == "Layers"]
    shown = [re.split(r"\s{2,}", line)[0] for line in layers.splitlines()]
    assert shown == config["tool"]["importlinter"]["contracts"][0]["layers"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize("line", [line for one in TARGETS for line in one.text.splitlines()])
def test_the_targets_and_programs_are_there(line: str) -> None:
    """What each would do is only listed: doing it is what these tests are part of."""
    program, target = line.split()[:2]
    if program == "make":
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, done.stderr
    else:
        assert (Path(sys.executable).parent / program.removeprefix(".venv/bin/")).exists()
        assert (ROOT / target).exists() or target == "install"
