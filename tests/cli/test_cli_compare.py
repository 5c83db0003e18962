"""`tagi eval compare` from the outside: what it says, and what it refuses."""

from pathlib import Path

import pytest

from cli_runs import Run, mistake
from tagi.data.types import Example, Instruction
from tagi.eval.report import Prediction, write_predictions

TASKS, EACH = 30, 4


def answers(folder: Path, right: int, *, tasks: int = TASKS) -> Path:
    """Predictions of which the first `right` of every task's examples are exact."""
    folder.mkdir()
    predictions = [
        Prediction(
            task=f"task{task}",
            categories=("any",),
            instruction=Instruction("Repeat."),
            example=Example(id=f"{task}-{number}", input="wolf", targets=("wolf",)),
            text="wolf" if number < right else "plum",
        )
        for task in range(tasks)
        for number in range(EACH)
    ]
    write_predictions(folder / "predictions.jsonl", predictions)
    return folder


@pytest.mark.parametrize(("right", "verdict"), [(3, "better"), (2, "unresolved"), (1, "worse")])
def test_compare(tagi: Run, tmp_path: Path, right: int, verdict: str) -> None:
    one, other = answers(tmp_path / "one", right), answers(tmp_path / "other", 2)
    found = tagi("eval", "compare", "--ours", one, "--theirs", other, "--json").json
    assert (found["verdict"], found["n"], found["tasks"]) == (verdict, TASKS * EACH, TASKS)
    assert (found["ours"], found["theirs"]) == (right / EACH, 2 / EACH)
    assert found["difference"] == pytest.approx((right - 2) / EACH)
    shown = tagi("eval", "compare", "--ours", one, "--theirs", other)
    assert shown.code == 0 and verdict in shown.out


def test_what_cannot_be_compared(tagi: Run, tmp_path: Path) -> None:
    one, fewer = answers(tmp_path / "one", 2), answers(tmp_path / "fewer", 2, tasks=3)
    mistake(tagi("eval", "compare", "--ours", one, "--theirs", fewer), "do not hold the same examples")
    mistake(tagi("eval", "compare", "--ours", one, "--ours", one, "--theirs", one), "they are compared in pairs")
    mistake(tagi("eval", "compare", "--ours", one, "--theirs", tmp_path / "none"), "none/predictions.jsonl")
