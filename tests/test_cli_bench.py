"""`tagi eval compare` and `tagi bench` from the outside: what they say, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest

from cli_runs import Run, mistake, write_config
from tagi.cli.common import default_checkpoint
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


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_bench_train(tagi: Run, tmp_path: Path) -> None:
    """Every comparison has its cases and positive times; no time is asserted."""
    small = ("--rounds", 1, "--teachers", 2, "--teacher-rows", 1, "--tasks", 1, "--rows", 2, "--rank", 2)
    found = tagi("bench", "train", *small, "--json-file", tmp_path / "bench.json", "--json").json
    assert [len(one["cases"]) for one in found["comparisons"]] == [2, 4, 2]
    for one in found["comparisons"]:
        assert one["cases"][0]["ratio"] == 1.0
        assert all(case["median_s"] > 0 for case in one["cases"])
    assert (tmp_path / "bench.json").exists()
    mistake(tagi("bench", "train", "speed"), "speed: there is no such comparison; there are teachers, step, t5")


def test_bench_logits(tagi: Run, metatrained: Path, tmp_path: Path) -> None:
    """The whole vocabulary is the online loss to the bit; fewer tokens can only lower it."""
    teacher: dict[str, Any] = {"kind": "instruct", "checkpoint": str(metatrained)}
    config = write_config(tmp_path, objective={"lambda_kl": 1.0, "temperature": 2.0, "teacher": teacher})
    lines = tagi("bench", "logits", "--config", config, "--batches", 1, "--json").json["lines"]
    assert lines[-1]["error"] == 0.0 and lines[-1]["loss"] > 0
    assert all(line["error"] <= 1e-6 for line in lines)
    assert [line["k"] for line in lines] == sorted(line["k"] for line in lines)


def test_bench_flops(tagi: Run, shared_data: Path) -> None:
    """Every system at the lengths of the 17 test tasks, with the bundled tokenizer."""
    asked = ("--data", shared_data / "sni", "--tokenizer", default_checkpoint(), "--shape", "t5-base")
    found = tagi("bench", "flops", *asked, "--positives", 2, "--json").json
    systems = {one["name"]: one for one in found["systems"]}
    assert (found["lengths"]["tasks"], found["lengths"]["shots"]) == (17, 2)
    assert systems["metatrain"]["ratio_of_sums"] == systems["metatrain"]["mean_of_ratios"] == 1.0
    assert systems["no_instruction"]["over_floor"] == 1.0
    assert 1.0 < systems["tagi"]["over_floor"] < 1.2
    assert systems["tagi"]["ratio_of_sums"] < systems["tagi"]["mean_of_ratios"] + 0.2 < 1.0
    narrow = tagi("bench", "flops", *asked, "--positives", 2, "--width", 64, "--json").json
    assert {one["name"]: one for one in narrow["systems"]}["tagi"]["over_floor"] < systems["tagi"]["over_floor"]
    assert "ensemble_icl" in tagi("bench", "flops", *asked).out


def test_bench_inference(tagi: Run, shared_data: Path) -> None:
    asked = ("--data", shared_data / "sni", "--tokenizer", default_checkpoint(), "--shape", "micro")
    found = tagi("bench", "inference", *asked, "--rounds", 1, "--batch", 2, "--positives", 1, "--json").json
    answering, adapting = found["comparisons"]
    assert answering["cases"][0]["name"] == "metatrain"
    assert {"hint", "fid_icl", "ensemble_icl", "tagi", "hypter"} < {case["name"] for case in answering["cases"]}
    assert adapting["cases"][0]["name"] == "encoder pass"
    assert "metatrain" not in {case["name"] for case in adapting["cases"]}


def test_bench_store(tagi: Run) -> None:
    asked = ("--shape", "micro", "--rank", 2, "--tasks", 40, "--asked", 5, "--words", 6, "--rounds", 1)
    found = tagi("bench", "store", *asked, "--json").json
    assert found["kept"] == found["tasks"] == 40
    assert found["use"]["generated"] >= 1 and found["use"]["disk"] >= 1 and found["use"]["unwritten"] == 0
    assert found["disk_bytes"] > found["adapter_bytes"] > 0
    assert [case["name"] for case in found["times"]["cases"]] == ["generated", "from disk", "from memory"]
    assert "40 of 40" in tagi("bench", "store", *asked).out


def test_bench_mixed(tagi: Run) -> None:
    lengths = ("--instruction", 4, "--input", 5, "--target", 2)
    asked = ("--shape", "micro", "--rank", 2, "--tasks", 3, "--rounds", 1, *lengths)
    warm, cold = tagi("bench", "mixed", *asked, "--json").json["comparisons"]
    named = {case["name"] for case in warm["cases"]}
    assert {"tagi, one task", "tagi, 3 tasks", "tagi, one task after another", "peft adapter_names, 3 tasks"} < named
    assert "peft adapter_names, 3 tasks" in {case["name"] for case in cold["cases"]}
    assert "peft" not in tagi("bench", "mixed", *asked, "--no-peft").out
