"""Training and scoring from the command line, and the commands that only look."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml

from cli_runs import CONFIG, Result, Run, mistake, write_config
from sni_folders import write_sni
from tagi import Tagi
from tagi.cli import demo, doctor
from tagi.cli import eval as eval_command
from tagi.cli.main import main
from tagi.config.files import RUN_FILE
from tagi.data.synthetic.micro_splits import SHOWN_TASK
from tagi.data.synthetic.microtasks import MicroTask
from tagi.data.types import Instruction
from tagi.eval import evaluate
from tagi.eval.report import read_predictions
from tagi.methods import METHODS

# --- train ------------------------------------------------------------------------------------------------


def test_train_prints_the_checkpoint(tagi: Run, tmp_path: Path) -> None:
    result = tagi("train", "finetune", "--config", write_config(tmp_path), "training.steps=1", "data.seed=3")
    final = tmp_path / "runs" / "final"
    assert (result.code, result.out) == (0, f"{final}\n")
    kept = yaml.safe_load((final / RUN_FILE).read_text())
    assert (kept["training"]["steps"], kept["data"]["seed"], kept["data"]["compositions"]) == (1, 3, 20)


def test_dry_run_writes_nothing(tagi: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    arguments = ["train", "finetune", "--config", config, "--dry-run", "training.trainable=[fusion]"]
    found = tagi(*arguments, "--json").json
    assert sorted(tmp_path.iterdir()) == [config]
    assert found["trainable"] == ["fusion"]
    assert found["rows_per_step"] == 4
    assert 4 * 3 < found["tokens_per_step"] < 4 * 100
    assert found["hypernetwork_share"] == found["parameters"]["hypernetwork"] / found["parameters"]["backbone"]
    shown = " ".join(tagi(*arguments).out.split())
    assert f"backbone {found['parameters']['backbone']:,} frozen" in shown
    assert f"fusion {found['parameters']['fusion']:,} trained" in shown


def test_weights_of_another_shape_than_the_config_expects(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    shape = f"backbone={{path: {checkpoint / 'backbone'}, shape: t5-small}}"
    found = tagi("train", "finetune", "--config", write_config(tmp_path), shape)
    mistake(found, "backbone.shape.d_model: is 512, but the checkpoint", str(checkpoint / "backbone"))


def test_resume(tagi: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    tagi("train", "finetune", "--config", config)
    again = tagi("train", "finetune", "--config", config)
    assert (again.code, again.out) == (2, "")
    assert again.err.endswith(
        f"error: {tmp_path / 'runs'}: already holds a run; add --resume to go on, or choose another output\n"
    )
    assert tagi("train", "finetune", "--config", config, "--resume", "--json").json["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["metatrain"], ["run.yaml", "stage", "finetune", "metatrain"]),
        (["finetune", "training.stepz=3"], ["training.stepz", "did you mean steps"]),
        (["finetune", "training.steps"], ["training.steps", "key=value"]),
        (["finetune", "training.precision=fp16"], ["training.precision", "'fp32' or 'bf16'"]),
        (["finetune", "training.steps=-1"], ["training.steps", "greater than 0"]),
        (["finetune", "method=tagy"], ["method", "tagy", "did you mean tagi"]),
        (["finetune", "data.source=c4", "data.path=/nowhere"], ["data.source", "c4", "finetune"]),
        (["finetune", "data.source=sni", "data.path=/nowhere"], ["/nowhere", "tasks"]),
        (["finetune", "backbone=null", "start_from=/nowhere"], ["/nowhere"]),
    ],
)
def test_train_mistakes(tagi: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    config = write_config(tmp_path)
    mistake(tagi("train", *arguments, "--config", config), *words)
    assert sorted(tmp_path.iterdir()) == [config]


def test_config_that_is_none(tagi: Run, tmp_path: Path) -> None:
    mistake(tagi("train", "finetune", "--config", tmp_path / "none.yaml"), "none.yaml", "cannot be read")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    mistake(tagi("train", "finetune", "--config", tmp_path / "bad.yaml"), "bad.yaml", "is not YAML")


# --- the program ------------------------------------------------------------------------------------------


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from tagi.cli.main import run; run()", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_program_exits_with_2(tmp_path: Path) -> None:
    process = start("train", "finetune", "--config", tmp_path / "none.yaml")
    out, err = process.communicate(timeout=120)
    mistake(Result(process.returncode, out, err), "none.yaml")


def test_interrupted_training(tmp_path: Path) -> None:
    """Ctrl-C: exit code 130, no traceback, a sentence that says what is kept, and only whole checkpoints."""
    training = CONFIG["training"] | {"steps": 1_000_000, "checkpoint_every": 5, "keep": 1000}
    process = start("train", "finetune", "--config", write_config(tmp_path, training=training))
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 240
    while not list(runs.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert re.search(r"step-\d+ is complete; --resume goes on from there", " ".join(err.split()))
    left = {file.name for file in runs.iterdir()} - {"log.jsonl"}
    assert left
    for name in left:
        assert name.startswith("step-")
        Tagi.from_pretrained(runs / name)


@pytest.fixture(scope="module")
def sni_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test tasks in the layout of Super-NaturalInstructions."""
    folder = tmp_path_factory.mktemp("sni")
    tasks = [
        MicroTask(i, (operation,), i).task(demonstrations=2) for i, operation in enumerate([*SHOWN_TASK, SHOWN_TASK[1]])
    ]
    write_sni(folder, tasks[:1], tasks, instances=5)
    return folder


# --- eval -------------------------------------------------------------------------------------------------


def test_literals_are_those_of_the_evaluation() -> None:
    for name in ("InstructionControl", "AdapterControl"):
        assert get_args(getattr(eval_command, name)) == get_args(getattr(evaluate, name))


def test_eval_micro(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["eval", "micro", "--tasks", 3, "--instances", 2, "--checkpoint", checkpoint]
    found = tagi(*arguments, "-o", tmp_path, "--json").json
    predictions = read_predictions(tmp_path / "predictions.jsonl")
    scores = evaluate.score(predictions)
    assert found["n"] == len(predictions) == 6
    assert found["rouge_l"] == pytest.approx(sum(scores.rouge_l) / 6)
    assert found["exact_match"] == pytest.approx(sum(scores.exact_match) / 6)
    assert predictions[0].task == "micro0000_keep_only_animals__reverse"
    assert len({one.task for one in predictions}) == len(found["by_task"]) == 3
    assert sum(group["n"] for group in found["by_category"].values()) == 6
    assert found["control"] == {"instruction": "aligned", "adapter": "full"}
    assert found["reference"].keys() == {"copy_input", "copy_demonstration", "majority"}
    bare = tagi(*arguments, "--demonstrations", 0, "--json").json
    assert (found["command"]["demonstrations"], bare["command"]["demonstrations"]) == (1, 0)
    assert bare["reference"].keys() == {"copy_input", "majority"}
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    low, high = found["interval"]["rouge_l"]
    assert low <= found["rouge_l"] <= high
    row = f"| all | 6 | {100 * found['rouge_l']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert row in (tmp_path / "scores.md").read_text()


def test_eval_micro_controls(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["eval", "micro", "--tasks", 3, "--instances", 1, "--checkpoint", checkpoint, "-o"]
    told: dict[str, list[Instruction]] = {}
    for control in ("aligned", "shuffled", "random", "empty"):
        assert tagi(*arguments, tmp_path / control, "--instruction", control).code == 0
        told[control] = [one.instruction for one in read_predictions(tmp_path / control / "predictions.jsonl")]
    own = told["aligned"]
    assert set(told["shuffled"]) <= set(own)
    assert all(a != b for a, b in zip(own, told["shuffled"], strict=True))
    lengths = [[len(one.definition.split()) for one in some] for some in (own, told["random"])]
    assert lengths[0] == lengths[1] and set(own).isdisjoint(told["random"])
    assert [one.definition for one in told["empty"]] == ["", "", ""]


def test_eval_micro_new_phrasings(tagi: Run, checkpoint: Path) -> None:
    arguments = ["eval", "micro", "--tasks", 2, "--instances", 1, "--checkpoint", checkpoint, "--json"]
    found = tagi(*arguments, "--phrasings", "new").json
    assert [name.endswith("_reworded") for name in found["by_task"]] == [True, True]


def test_eval_micro_says_what_it_cannot_know(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    mismatched = tmp_path / "mismatched"
    shutil.copytree(checkpoint, mismatched)
    (mismatched / RUN_FILE).unlink()
    arguments = ["eval", "micro", "--tasks", 2, "--instances", 1, "--checkpoint"]
    assert "may not be unseen" in tagi(*arguments, mismatched).err
    assert tagi(*arguments, checkpoint).err == ""
    (mismatched / RUN_FILE).write_text("stage: dance", encoding="utf-8")
    mistake(tagi(*arguments, mismatched), str(mismatched / RUN_FILE))


def test_eval_mistakes(tagi: Run, checkpoint: Path, metatrained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    some = ["eval", "micro", "--instances", 1, "--checkpoint"]
    mistake(tagi(*some, checkpoint, "--tasks", 501), "--tasks 501", "500")
    mistake(tagi(*some, checkpoint, "--tasks", 1, "--instruction", "shuffled"), "two tasks")
    mistake(tagi(*some, metatrained, "--tasks", 2, "--adapter", "lora_only"), "adapter", "metatrain")
    mistake(tagi(*some, checkpoint, "-o", tmp_path / "file"), str(tmp_path / "file"), "is a file")


def test_eval_sni(tagi: Run, checkpoint: Path, sni_folder: Path) -> None:
    arguments = ["eval", "sni", "--data", sni_folder, "--checkpoint", checkpoint]
    two = [word for path in sorted((sni_folder / "tasks").glob("*.json"))[:2] for word in ("--task", path.stem)]
    found = tagi(*arguments, "--instances", 2, *two, "--json").json
    assert (found["n"], len(found["by_task"])) == (4, 2)
    assert (found["command"]["benchmark"], found["command"]["data"]) == ("sni", str(sni_folder))
    few = tagi(*arguments, "--demonstrations", 0, "--instances", 1, "--json").json["command"]
    assert (found["command"]["demonstrations"], few["demonstrations"]) == (1, 0)
    table = tagi(*arguments).out
    assert [line.split()[:2] for line in table.splitlines() if line.strip().startswith("all")] == [["all", "15"]]
    assert "copying the first demonstration" in table


def test_bad_sni_folders(tagi: Run, checkpoint: Path, sni_folder: Path, tmp_path: Path) -> None:
    def score(folder: Path, *more: object) -> Result:
        return tagi("eval", "sni", "--data", folder, "--checkpoint", checkpoint, *more)

    mistake(score(tmp_path), str(tmp_path), "tasks")
    mistake(score(sni_folder, "--split", "xlingual"), "xlingual", "test_tasks.txt")
    broken = tmp_path / "broken"
    shutil.copytree(sni_folder, broken)
    task = next(iter(sorted(broken.glob("tasks/*.json"))))
    content = json.loads(task.read_text())
    del content["Definition"]
    task.write_text(json.dumps(content), encoding="utf-8")
    mistake(score(broken), str(task), "Definition", "is missing")
    task.write_text("{", encoding="utf-8")
    mistake(score(broken), str(task), "is not JSON")
    task.unlink()
    mistake(score(broken), "test_tasks.txt", task.stem)


# --- methods, doctor, demo --------------------------------------------------------------------------------


def test_methods_are_the_rows_of_table_1(tagi: Run) -> None:
    found = {row["name"]: row for row in tagi("methods", "--json").json["methods"]}
    assert list(found) == [method.name for method in METHODS]
    columns = ("pretrained", "fuses_instruction", "low_inference_cost")
    published = {  # Table 1: T0 / Tk-Instruct, HyperTuning, HINT, TAGI
        "metatrain": (False, True, False),
        "hypertuning_lora": (True, False, True),
        "hint": (True, False, True),
        "tagi": (True, True, True),
    }
    assert {name: tuple(found[name][column] for column in columns) for name in published} == published
    table = tagi("methods").out
    assert [name for name in found if table.count(f" {name} ") < 2] == []


def test_doctor(tagi: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "default_checkpoint", lambda: checkpoint)
    well = tagi("doctor", "--json")
    assert (well.code, well.json["ok"]) == (0, True)
    assert {"python", "torch", "transformers", "threads", "devices", "disk"} <= {
        one["name"] for one in well.json["checks"]
    }
    monkeypatch.setattr(doctor, "default_checkpoint", lambda: tmp_path)
    ill = tagi("doctor")
    assert ill.code == 1
    assert "is no TAGI checkpoint" in " ".join(ill.out.split())
    assert "or install tagi again" in " ".join(ill.out.split())


def test_doctor_misses_a_package(tagi: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "default_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    result = tagi("doctor", "--json")
    assert result.code == 1
    assert [one["mend"] for one in result.json["checks"] if one["mend"]] == ["pip install no-such-package"]


def test_demo_json(tagi: Run, checkpoint: Path) -> None:
    found = tagi("demo", "--tasks", 6, "--checkpoint", checkpoint, "--json").json
    columns = {"adapter", "prompt", "mismatched"}
    assert (found["tasks"], found["n"]) == (6, 6 * demo.INSTANCES)
    assert found["exact_match"] == found["exact_match_by_column"]["adapter"]
    assert found["exact_match_by_column"].keys() == found["rouge_l_by_column"].keys() == columns
    assert len(found["shown"]) == demo.SHOWN_TASKS
    model = Tagi.from_pretrained(checkpoint)
    for task in found["shown"]:
        texts = [one["input"] for one in task["inputs"]]
        assert [one["answers"]["adapter"] for one in task["inputs"]] == model.solve(task["instruction"], texts)
        assert [one["answers"]["mismatched"] for one in task["inputs"]] == model.solve(task["mismatched"], texts)
        assert len(texts) == demo.INSTANCES and task["instruction"] != task["mismatched"]
    costs = found["costs"]
    assert costs["adapter"]["tokens"] == costs["cached prompt"]["tokens"] < costs["prompt"]["tokens"]


def test_demo_on_a_dumb_terminal(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["demo", "--tasks", "2", "--checkpoint", str(checkpoint)]) == 0
    out.seek(0)
    text = out.read()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[:-3])) <= 80
    assert f"{2 * demo.INSTANCES} inputs of 2 unseen tasks" in text and " no " in text


def test_errors_are_no_markup(tagi: Run, tmp_path: Path) -> None:
    """Square brackets in a message are the user's, not styles."""
    name = tmp_path / "[bold]x[/bold].jsonl"
    mistake(tagi("run", "Sort.", "--inputs", name), str(name))
