"""`tagi eval everyday`: every test task in every wording, under controls that pair tasks of one wording."""

import json
from pathlib import Path

import pytest

from cli_runs import Run, mistake
from tagi.eval.report import read_predictions

DATA = Path(__file__).parents[2] / "datasets" / "everyday"
TASKS = ("t_calm_title", "t_bag_reason", "t_bill_total_fix")
ASKED = ("eval", "everyday", "--data", DATA, "--instances", "2", *(word for one in TASKS for word in ("--task", one)))


def test_everyday_scores_every_wording(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    found = tagi(*ASKED, "--checkpoint", checkpoint, "-o", tmp_path, "--json").json
    assert found["n"] == 3 * 2 * 4 and {one["n"] for one in found["by_task"].values()} == {8}
    assert len(found["by_wording"]) == 4
    for metric in ("rouge_l", "exact_match"):
        mean = sum(one[metric] for one in found["by_wording"]) / 4
        assert found[metric] == pytest.approx(mean, abs=1e-12)
    predictions = read_predictions(tmp_path / "predictions.jsonl")
    file = json.loads((DATA / "test" / f"{TASKS[0]}.json").read_text())
    wordings = [file["Definition"][0], *file["Paraphrases"]]
    own = [one.instruction.definition for one in predictions if one.task == TASKS[0]]
    assert own == [wording for wording in wordings for _ in range(2)]
    assert "wording 3" in (tmp_path / "scores.md").read_text()


def test_everyday_pairs_mismatched_tasks_in_one_wording(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    tagi(*ASKED, "--checkpoint", checkpoint, "-o", tmp_path, "--instruction", "shuffled")
    files = [json.loads((DATA / "test" / f"{task}.json").read_text()) for task in TASKS]
    for number, one in enumerate(read_predictions(tmp_path / "predictions.jsonl")):
        same = {
            ([f["Definition"][0], *f["Paraphrases"]][number // 6]): task for task, f in zip(TASKS, files, strict=True)
        }
        assert same[one.instruction.definition] != one.task


def test_everyday_in_one_wording(tagi: Run, checkpoint: Path) -> None:
    found = tagi(*ASKED, "--checkpoint", checkpoint, "--wording", "2", "--json").json
    assert found["n"] == 6 and "by_wording" not in found
    mistake(tagi(*ASKED, "--checkpoint", checkpoint, "--wording", "7"), "wording: 7 is none of", "0 to 3")
    mistake(tagi("eval", "everyday", "--data", "nowhere", "--checkpoint", checkpoint), "nowhere", "no task file")
