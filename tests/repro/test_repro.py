"""`tagi repro`: from what is missing to Markdown, JSON and pictures, at toy size."""

import json
from pathlib import Path
from shlex import split
from typing import Any, get_args

import pytest
from toy_configs import write_configs

from cli_runs import Result, Run
from tagi.repro import experiments, scales
from tagi.train import trainer

FEW = "micro", "--tasks", "4", "--instances", "2"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with toy configs, in which synthetic tasks are scored in a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scales, "SYNTHETIC", FEW)
    write_configs(tmp_path, steps=2)
    return tmp_path


@pytest.fixture
def two_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: experiments.MAIN[name] for name in ("No FT", "TAGI")}
    monkeypatch.setattr(experiments, "MAIN", some)


def made(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    return result.json


@pytest.mark.usefixtures("two_systems")
def test_table2_from_nothing_to_its_numbers(tagi: Run, toy: Path) -> None:
    found = made(tagi("repro", "table2", "--run", "--json"))
    assert found["missing"] == []
    rows = {row["label"]: row for row in found["parts"][0]["rows"]}
    assert rows["TAGI"]["paper"]["Def, XL"] == 48.4
    for label in ("No FT", "TAGI"):
        ours = rows[label]["ours"]
        assert ours.keys() == {"Def", "Def + 2 Pos."}
        assert all(0 <= one["score"] <= 1 and len(one["seeds"]) == 1 for one in ours.values())
    scores = next((toy / "runs/micro-def/finetune/scores").glob("*/scores.json"))
    assert json.loads(scores.read_text())["exact_match"] == rows["TAGI"]["ours"]["Def"]["score"]
    assert json.loads((toy / "runs/repro/table2-micro.json").read_text()) == found
    text = (toy / "runs/repro/table2-micro.md").read_text()
    assert "| paper: Def, XL |" in text and "| ours: Def |" in text and "## Missing" not in text
    assert "| TAGI | 35.3 | 48.4 |" in text


@pytest.mark.usefixtures("two_systems")
def test_what_is_missing_is_a_dash_with_a_command_that_trains_it(tagi: Run, toy: Path) -> None:
    """The commands by themselves, in their order, leave nothing missing; scores are kept while the checkpoint stays."""
    missing = made(tagi("repro", "table2", "--json"))["missing"]
    assert [one["output"] for one in missing][:2] == ["runs/micro-metatrain-0", "runs/ablation-bank"]
    assert missing[0]["hours"] > 0
    text = (toy / "runs/repro/table2-micro.md").read_text()
    assert all(one["command"] in text for one in missing)
    assert "| TAGI | 35.3 | 48.4 | 52.3 | 42.5 | 56.3 | 58.4 | 0.39 | – | – |" in text
    for one in missing:
        assert tagi(*split(one["command"])[1:]).code == 0
    first, again = tagi("repro", "table2", "--json"), tagi("repro", "table2", "--json")
    assert made(first)["missing"] == [] and made(first) == made(again)
    assert (first.err.count("scoring"), again.err.count("scoring")) == (4, 0)
    here, there = (toy / f"runs/micro-{one}/finetune/final/model.safetensors" for one in ("def", "def2pos"))
    here.write_bytes(there.read_bytes())
    assert tagi("repro", "table2").err.count("scoring") == 1


@pytest.mark.usefixtures("two_systems")
def test_a_run_that_was_stopped_goes_on(tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, saved = trainer._save, list[Path]()

    def stop(run: Any, *rest: Any) -> None:
        if "finetune" in str(run.folder):
            raise KeyboardInterrupt
        real(run, *rest)

    monkeypatch.setattr(trainer, "_save", stop)
    assert tagi("repro", "table2", "--run").code == 130
    monkeypatch.setattr(trainer, "_save", lambda run, *rest: (saved.append(run.folder), real(run, *rest)))
    assert made(tagi("repro", "table2", "--run", "--json"))["missing"] == []
    assert Path("runs/micro-metatrain-0") not in saved and Path("runs/micro-def/finetune") in saved


def test_a_figure_is_drawn_twice(tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_configs(toy, steps=5)
    found = made(tagi("repro", "figure4", "--run", "--json"))
    left, right = (part["lines"][0]["points"] for part in found["parts"])
    assert [one["x"] for one in left] == [1, 2, 3, 4, 5] and [one["x"] for one in right] == [0, 6, 15]
    assert all(one["ours"] is not None for one in (*left, *right))
    assert (toy / "runs/repro/figure4-micro.svg").read_text().lstrip().startswith("<?xml")
    assert (toy / "runs/repro/figure4-micro.png").read_bytes().startswith(b"\x89PNG")
    assert "](figure4-micro.svg)" in (toy / "runs/repro/figure4-micro.md").read_text()
    assert len(list((toy / "runs/micro-def/teachers-6/final").glob("*.safetensors"))) == 7  # six LoRAs and A₀


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(experiments.Name))
def test_every_table_at_micro_scale(name: str, tagi: Run, toy: Path) -> None:
    write_configs(toy, steps=5)
    found = made(tagi("repro", name, "--run", "--json"))
    assert found.get("missing", []) == []
    text = next((toy / "runs/repro").glob(f"{name}*.md")).read_text()
    assert "## Missing" not in text
