"""`tagi eval compare` and `tagi bench` from the outside: what they say, and what they refuse."""

import json
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
    small = (
        "--rounds",
        1,
        "--teachers",
        2,
        "--teacher-rows",
        1,
        "--tasks",
        1,
        "--rows",
        2,
        "--rank",
        2,
        "--text-rows",
        2,
    )
    found = tagi("bench", "train", *small, "--json-file", tmp_path / "bench.json", "--json").json
    assert [len(one["cases"]) for one in found["comparisons"]] == [2, 4, 2, 3]
    for one in found["comparisons"]:
        assert one["cases"][0]["ratio"] == 1.0
        assert all(case["median_s"] > 0 for case in one["cases"])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["comparisons"] == found["comparisons"]
    assert written["command"] == "tagi bench train" and written["arguments"]["teachers"] == 2
    assert written["measured"].keys() == {"date", "dtype", "threads", "processor", "versions"}
    there = "there are teachers, step, t5, text"
    mistake(tagi("bench", "train", "speed"), f"speed: there is no such comparison; {there}")


def test_bench_logits(tagi: Run, metatrained: Path, tmp_path: Path) -> None:
    """The whole vocabulary is the online loss to the bit; fewer tokens can only lower it."""
    teacher: dict[str, Any] = {"kind": "instruct", "checkpoint": str(metatrained)}
    config = write_config(tmp_path, objective={"lambda_kl": 1.0, "temperature": 2.0, "teacher": teacher})
    lines = tagi("bench", "logits", "--config", config, "--batches", 1, "--json").json["lines"]
    assert lines[-1]["error"] == 0.0 and lines[-1]["loss"] > 0
    assert all(line["error"] < -1e-3 for line in lines[:-1])  # from -0.22 nats a token to -0.026 as k grows
    assert [line["k"] for line in lines] == sorted(line["k"] for line in lines)


def test_bench_flops(tagi: Run, shared_data: Path) -> None:
    """Every system at the lengths of the 17 test tasks, with the bundled tokenizer."""
    asked = ("--data", shared_data / "sni", "--tokenizer", default_checkpoint(), "--shape", "t5-base")
    found = tagi("bench", "flops", *asked, "--positives", 2, "--json").json
    systems = {one["name"]: one for one in found["systems"]}
    assert (found["lengths"]["tasks"], found["lengths"]["shots"]) == (17, 2)
    assert systems["metatrain"]["ratio_of_sums"] == systems["metatrain"]["mean_of_ratios"] == 1.0
    assert systems["no_instruction"]["over_floor"] == 1.0
    assert 1.0 < systems["tagi"]["over_floor"] < 1.15  # counted: 1.110
    assert systems["tagi"]["ratio_of_sums"] < systems["tagi"]["mean_of_ratios"] + 0.2 < 1.0
    narrow = tagi("bench", "flops", *asked, "--positives", 2, "--width", 64, "--json").json
    assert {one["name"]: one for one in narrow["systems"]}["tagi"]["over_floor"] < systems["tagi"]["over_floor"]
    assert "ensemble_icl" in tagi("bench", "flops", *asked).out


def sni(shared_data: Path) -> tuple[object, ...]:
    return ("--data", shared_data / "sni", "--tokenizer", default_checkpoint(), "--shape", "micro", "--rounds", 2)


def test_bench_inference(tagi: Run, shared_data: Path) -> None:
    found = tagi("bench", "inference", *sni(shared_data), "--batch", 2, "--positives", 1, "--json").json
    answering, preparing, task = found["comparisons"]
    assert answering["cases"][0]["name"] == "metatrain"
    assert {"hint", "fid_icl", "ensemble_icl", "tagi", "hypter"} < {case["name"] for case in answering["cases"]}
    assert preparing["cases"][0]["name"] == "encoder pass"
    once = {case["name"]: case["seconds"] for case in preparing["cases"]}
    assert "metatrain" not in once
    for case, whole in zip(answering["cases"], task["cases"], strict=True):
        before = once.get(case["name"], [0.0, 0.0])
        assert whole["seconds"] == pytest.approx([a + 50 * b for a, b in zip(before, case["seconds"], strict=True)])


def test_bench_inference_in_bf16(tagi: Run, shared_data: Path) -> None:
    """Only what is asked for, in both number formats; the floor prepares nothing, so there is nothing to add up."""
    asked = ("--batch", 1, "--system", "no_instruction", "--transformers", "--dtype", "bf16")
    found = tagi("bench", "inference", *sni(shared_data), *asked, "--json").json
    (answering,) = found["comparisons"]
    assert [case["name"] for case in answering["cases"]] == ["transformers, prompt", "no_instruction"]
    assert found["measured"]["dtype"] == "bf16"


@pytest.mark.slow
def test_bench_compiled(tagi: Run, shared_data: Path) -> None:
    """Compiled cases stand beside plain ones, and nothing else is timed again."""
    asked = ("--batch", 2, "--system", "tagi", "--compile", "--json")
    (answering,) = tagi("bench", "inference", *sni(shared_data), *asked).json["comparisons"]
    assert [case["name"] for case in answering["cases"]] == ["tagi", "tagi, compiled"]
    small = ("--shape", "micro", "--tasks", 2, "--no-peft", "--rounds", 1, "--target", 3, "--compile", "--json")
    warm, _ = tagi("bench", "mixed", *small).json["comparisons"]
    names = [case["name"] for case in warm["cases"]]
    assert [name for name in names if name.endswith("compiled")] == [
        "tagi, different tasks, compiled",
        "LoRA alone, different tasks, compiled",
    ]


def test_bench_adapt(tagi: Run, shared_data: Path, tmp_path: Path) -> None:
    small = ("--tasks", 1, "--tasks", 3, "--together", 2, "--batch", 2, "--system", "tagi", "--system", "hypter")
    asked = (*sni(shared_data), *small, "--rank", 2, "--plot", tmp_path / "adapt.svg")
    found = tagi("bench", "adapt", *asked, "--json").json
    titles = ["preparing tasks: 1", "preparing tasks: 3", "preparing a task for 100 examples", "answering, 2 at a time"]
    assert [one["title"] for one in found["comparisons"]] == titles
    names = [[case["name"] for case in one["cases"]] for one in found["comparisons"]]
    assert names == [["encoder pass", "tagi", "hypter"]] * 3 + [["metatrain", "tagi", "hypter"]]
    assert [one["name"] for one in found["break_even"]] == ["tagi", "hypter"]
    drawn = (tmp_path / "adapt.svg").read_text()
    assert drawn.startswith("<?xml") and drawn.count("<!-- preparing tasks -->") == 1
    shown = tagi("bench", "adapt", *asked).out
    assert "requests from which preparing" in shown and "folded weights" in shown


def test_what_cannot_be_adapted(tagi: Run, shared_data: Path, tmp_path: Path) -> None:
    mistake(tagi("bench", "adapt", *sni(shared_data), "--system", "tgi"), "did you mean tagi?")
    mistake(tagi("bench", "adapt", *sni(shared_data), "--system", "metatrain"), "metatrain: this system prepares noth")
    mistake(tagi("bench", "adapt", *sni(shared_data), "--tasks", 10_000), "--tasks", "1024")
    mistake(tagi("bench", "adapt", "--data", tmp_path), "tasks: there is no such folder")
    mistake(tagi("bench", "adapt", "--data", tmp_path, "--shape", "t5-smal"), "--shape", "did you mean t5-small?")


def test_files_are_refused_before_anything_is_measured(tagi: Run, tmp_path: Path) -> None:
    """An unknown shape is found later, and yet the file is what is named."""
    (tmp_path / "file").touch()
    late = ("bench", "mixed", "--shape", "none")
    mistake(tagi(*late, "--plot", "mixed.pdf"), "mixed.pdf: a plot ends in .png or .svg")
    mistake(tagi(*late, "--plot", tmp_path / "file" / "a.png"), "file/a.png: cannot be written")
    mistake(tagi(*late, "--json-file", tmp_path), "cannot be written (Is a directory)")


def test_bench_store(tagi: Run) -> None:
    asked = ("--shape", "micro", "--rank", 2, "--tasks", 40, "--asked", 5, "--words", 6, "--rounds", 1)
    found = tagi("bench", "store", *asked, "--json").json
    assert found["kept"] == found["tasks"] == 40
    assert found["use"]["generated"] >= 1 and found["use"]["disk"] >= 1 and found["use"]["unwritten"] == 0
    assert found["disk_bytes"] > found["adapter_bytes"] > 0
    (times,) = found["comparisons"]
    assert [case["name"] for case in times["cases"]] == ["generated", "from disk", "from memory"]
    assert "40 of 40" in tagi("bench", "store", *asked).out


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_bench_mixed(tagi: Run, tmp_path: Path) -> None:
    lengths = ("--instruction", 4, "--input", 5, "--target", 2)
    small = ("--shape", "micro", "--rank", 2, "--tasks", 1, "--tasks", 3, "--rounds", 1, *lengths)
    most = ("--peft-up-to", 2, "--in-turn-up-to", 2)
    found = tagi("bench", "mixed", *small, *most, "--plot", tmp_path / "mixed.png", "--json")
    comparisons = found.json["comparisons"]
    titles = ["tasks with adapters at hand: 1", "tasks never seen: 1"]
    titles += ["tasks with adapters at hand: 3", "tasks never seen: 3"]
    assert [one["title"] for one in comparisons] == titles
    named = [[case["name"] for case in one["cases"]] for one in comparisons]
    ours = ["tagi, one task", "tagi, different tasks", "tagi, one task after another", "LoRA alone, different tasks"]
    assert named[0] == [*ours, "peft adapter_names"]
    assert named[2] == [*ours[:2], *ours[3:], "peft adapter_names"] and "3 tasks: not one after another" in found.err
    assert named[1] == ["tagi, different tasks", "LoRA alone, different tasks", "peft adapter_names"]
    assert named[3] == named[1][:-1] and "3 tasks never seen: without peft" in found.err
    for one, tasks in zip(comparisons, (1, 1, 3, 3), strict=True):
        assert all(case["answers_per_second"] == tasks / case["median_s"] for case in one["cases"])
    assert (tmp_path / "mixed.png").read_bytes().startswith(b"\x89PNG")
    assert "peft" not in tagi("bench", "mixed", *small, "--no-peft").out
