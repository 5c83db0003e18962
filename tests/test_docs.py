"""What the documentation names exists."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from blocks import ROOT, Block, claim
from fake_hub import FakeHub
from tagi import TaskAdapter
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.bundled import CHECKPOINTS

NEEDS_SMOLLM2 = pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")
NAMES = re.findall(r"`(tagi(?:\.\w+)+)`", (ROOT / "docs" / "equations.md").read_text(encoding="utf-8"))


def test_equations_are_listed() -> None:
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_the_equations_resolves(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        assert callable(found)
        return
    pytest.fail(f"{name} does not resolve")


LINKS = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("link", LINKS)
def test_every_link_in_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


PAGES = sorted((ROOT / "docs").glob("**/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_in_the_docs_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_drawing_of_the_architecture_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    drawn = importlib.import_module("draw_architecture").picture()
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn


def run_blocks(page: Sequence[Block], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run a page's Python from first to last, as somebody would who reads it in a checkout; gives its names."""
    for name in ("src", "weights"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in page:
        exec(block.text, names)
    return names


README, INDEX, ADAPTERS = (claim(page, "python") for page in ("README.md", "docs/index.md", "docs/adapters.md"))
YOUR_TASK, ANSWERING = (claim(f"docs/{page}.md", "python") for page in ("your-task", "inference"))
CARDS = [claim(f"src/tagi/assets/{name}/README.md") for name in CHECKPOINTS]


@NEEDS_SMOLLM2
def test_the_readme_s_ten_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_blocks(README, tmp_path, monkeypatch)
    assert capsys.readouterr().out.splitlines() == ["Oslo", "['Lyon', 'Lima']", "['Bergen']"]
    assert (tmp_path / "city" / "adapter.safetensors").exists()


@pytest.mark.slow  # the same model once more
@NEEDS_SMOLLM2
def test_the_three_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_blocks(INDEX, tmp_path, monkeypatch)
    assert capsys.readouterr().out == "Oslo\n"


@pytest.mark.slow  # the same model once more
@NEEDS_SMOLLM2
@pytest.mark.parametrize("card", CARDS, ids=CHECKPOINTS)
def test_the_cards_run(card: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks(card, tmp_path, monkeypatch)
    assert eval(card[0].text.splitlines()[-1], names) == "Oslo"


@NEEDS_SMOLLM2
def test_the_page_on_a_task_of_your_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks(YOUR_TASK, tmp_path, monkeypatch)
    assert "TaskFunction" in repr(names["city"]) and (tmp_path / "city").is_dir()


def test_the_page_on_answering_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_blocks(ANSWERING, tmp_path, monkeypatch)
    assert capsys.readouterr().out == "plum dog saw wolf"
    assert names["answers"] == ["dog wolf"]


def test_the_page_on_adapters_runs(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    names = run_blocks(ADAPTERS, tmp_path, monkeypatch)
    adapter = names["adapter"]
    assert isinstance(adapter, TaskAdapter) and hub.files.keys() == {"README.md", "adapter.safetensors"}
    assert TaskAdapter.from_pretrained(tmp_path / "animals").origins == adapter.origins
