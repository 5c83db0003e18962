"""`--resume` goes on with the run that began, and refuses every other by the name of what differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_runs import CONFIG, Run, mistake, write_config
from sni_folders import write_sni
from tagi.config.files import RUN_FILE
from tagi.data.synthetic.micro_splits import splits
from tagi.errors import CheckpointError
from tagi.train import resume
from tagi.train.build import build_stage
from tagi.train.trainer import train
from training_runs import config, furthest, in_two_processes, run

HALF, WHOLE = "step-00000002", "final"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of four steps, with its checkpoint after two."""
    from tagi.cli.main import main

    folder = tmp_path_factory.mktemp("resume")
    assert main(["train", "finetune", "--config", str(write_config(folder))]) == 0
    return folder / "runs"


@pytest.fixture
def broken_off(finished: Path, tmp_path: Path) -> Path:
    """The same run as if it had been stopped after two steps; `run.yaml` beside it is its config."""
    shutil.copytree(finished, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / WHOLE)
    write_config(tmp_path)
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGED = {
    "training.seed=7": "training.seed: 0 → 7",
    "training.lr=0.5": "training.lr: 0.03 → 0.5",
    "training.hypernetwork_lr_scale=0.5": "training.hypernetwork_lr_scale: 1.0 → 0.5",
    "training.optimizer=adafactor": 'training.optimizer: "adamw" → "adafactor"',
    "training.schedule=constant": 'training.schedule: "linear" → "constant"',
    "training.warmup=0.5": "training.warmup: 0.02 → 0.5",
    "training.precision=bf16": 'training.precision: "fp32" → "bf16"',
    "training.accumulation=2": "training.accumulation: 1 → 2",
    "training.tasks_per_batch=1": "training.tasks_per_batch: 2 → 1",
    "training.rows_per_task=1": "training.rows_per_task: 2 → 1",
    "training.trainable=[backbone]": "training.trainable: [",
    "hypernetwork.rank=4": "hypernetwork.rank: 2 → 4",
    "fusion.width=8": "fusion.width: 4 → 8",
    "backbone.shape.d_model=32": "backbone.shape.d_model: 16 → 32",
    "backbone.tokenizer=unigram": 'backbone.tokenizer: "micro" → "unigram"',
    "prompt.max_target=4": "prompt.max_target: 8 → 4",
    "prompt.demonstrations=0": "prompt.demonstrations: 1 → 0",
    "data.compositions=10": "data.compositions: 20 → 10",
    "data.seed=1": "data.seed: 0 → 1",
    "data.valid_tasks=1": "data.valid_tasks: 0 → 1",
    "method=lora_only": 'method: "tagi" → "lora_only"',
    "training.steps=1": "training.steps: 4 → 1",
    "training.steps=2": "training.steps: 4 → 2",
}


@pytest.mark.parametrize("override", CHANGED)
def test_resume_refuses_what_changes_the_run(tagi: Run, broken_off: Path, override: str) -> None:
    before = contents(broken_off)
    found = tagi("train", "finetune", "--config", broken_off.parent / "run.yaml", "--resume", override)
    mistake(found, str(broken_off / HALF), CHANGED[override], "resume with the config that it began with")
    assert contents(broken_off) == before


def test_resume_refuses_and_names_every_field(tagi: Run, broken_off: Path) -> None:
    overrides = ["training.seed=7", "data.seed=3"]
    found = tagi("train", "finetune", "--config", broken_off.parent / "run.yaml", "--resume", *overrides)
    mistake(found, "training.seed: 0 → 7", "data.seed: 0 → 3")


def test_resume_refuses_a_finished_run_of_another_config(tagi: Run, finished: Path) -> None:
    file = finished.parent / "run.yaml"
    for override, words in {"training.seed=7": "training.seed: 0 → 7", "training.steps=3": "training.steps: 4"}.items():
        mistake(tagi("train", "finetune", "--config", file, "--resume", override), str(finished / WHOLE), words)


def test_resume_refuses_nothing_that_does_no_harm(tagi: Run, finished: Path, broken_off: Path) -> None:
    """Moved, with other checkpoints: the weights of the run that was not stopped, to the bit."""
    moved = broken_off.rename(broken_off.with_name("moved"))
    free = [f"output={moved}", "training.keep=5", "training.activation_checkpointing=true"]
    found = tagi("train", "finetune", "--config", moved.parent / "run.yaml", "--resume", *free)
    assert (found.code, found.out) == (0, f"{moved / WHOLE}\n")
    assert "note: goes on with another training.keep: 2 → 5" in found.err and "another output" not in found.err
    assert furthest(finished / WHOLE, moved / WHOLE) == 0.0


def test_resume_refuses_more_steps_only_where_the_past_would_differ(tmp_path: Path) -> None:
    """A linear rate after two of eight steps is not that of two of six; a constant one is."""
    run(config(tmp_path / "linear", training__steps=6, training__checkpoint_every=4))
    longer = config(tmp_path / "linear", training__steps=8)
    with pytest.raises(CheckpointError, match=r"training\.steps: 6 → 8"):
        run(longer, resume=True)
    # that a constant one is: test_a_finished_run_goes_on_when_it_is_given_more_steps


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("trainer.json", b"", "is damaged"),
        ("trainer.json", b'{"step": 2, "sco', "is damaged"),
        ("trainer.json", b"[]", "no JSON object"),
        ("trainer.json", b'{"step": "two", "scores": {}, "numbers": {}}', "step"),
        ("trainer.json", b'{"step": 3, "scores": {}, "numbers": {}}', "step: is 3"),
        ("trainer.json", b'{"scores": {}, "numbers": {}}', "step"),
        ("trainer.json", None, "missing"),
        ("run.yaml", b"", "mapping"),
        ("run.yaml", b"\xff", "run.yaml"),
        ("run.yaml", None, "cannot be read"),
        ("resume.json", b"{", "is damaged"),
        ("resume.json", None, "missing"),
        ("model.safetensors", b"\x00\x01", "model.safetensors"),
        ("optimizer.safetensors", b"\x00\x01", "optimizer.safetensors"),
        ("optimizer.safetensors", None, "optimizer.safetensors"),
    ],
)
def test_resume_refuses_a_damaged_checkpoint(
    tagi: Run, broken_off: Path, file: str, content: bytes | None, words: str
) -> None:
    path = broken_off / HALF / file
    path.unlink() if content is None else path.write_bytes(content)
    before = contents(broken_off)
    arguments = ["train", "finetune", "--config", broken_off.parent / "run.yaml", "--resume", "training.keep=1"]
    found = tagi(*arguments)
    assert found.code == 2 and found.out == "" and "Traceback" not in found.err
    last = found.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and HALF in last and words in last
    assert contents(broken_off) == before


def test_resume_refuses_a_final_that_is_not_whole(tagi: Run, broken_off: Path) -> None:
    (broken_off / WHOLE).mkdir()
    mistake(tagi("train", "finetune", "--config", broken_off.parent / "run.yaml", "--resume"), WHOLE, RUN_FILE)


def test_resume_refuses_to_take_a_user_s_folder_for_a_checkpoint(tagi: Run, broken_off: Path) -> None:
    for name in ("step-notes", "step-99"):
        (broken_off / name).mkdir()
        (broken_off / name / "mine.txt").write_text("kept")
    arguments = ["train", "finetune", "--config", broken_off.parent / "run.yaml", "--resume", "training.keep=1"]
    assert tagi(*arguments).code == 0
    assert all((broken_off / name / "mine.txt").exists() for name in ("step-notes", "step-99"))


def sni_folder(folder: Path) -> Path:
    split = splits(0, train_compositions=20, valid=2, test=2)
    write_sni(folder, [t.task() for t in split.compositions], [t.task() for t in split.test], instances=6)
    return folder


def test_resume_refuses_changed_data_and_knows_moved_data_again(tagi: Run, tmp_path: Path) -> None:
    first = sni_folder(tmp_path / "sni")
    data = {"source": "sni", "path": str(first), "valid_tasks": 3, "valid_instances": 2}
    file = write_config(tmp_path, data=data)
    assert tagi("train", "finetune", "--config", file).code == 0
    whole = (tmp_path / "runs" / WHOLE).rename(tmp_path / "whole")
    moved = first.rename(tmp_path / "elsewhere")
    again = ["train", "finetune", "--config", file, "--resume"]
    shutil.copytree(moved, first)
    task = next(first.glob("tasks/*.json"))
    task.write_text(task.read_text().replace('"input": "', '"input": "so ', 1))
    mistake(tagi(*again), "data.path: holds other files than it did")
    (moved / "README.md").write_text("a file that no run reads")
    found = tagi(*again, f"data.path={moved}")
    assert found.code == 0 and "goes on with another data.path" in found.err
    assert furthest(whole, tmp_path / "runs" / WHOLE) == 0.0


def test_resume_refuses_another_number_of_processes_unless_steps_see_the_same(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    run(settings)
    shutil.rmtree(tmp_path / "run" / WHOLE)
    with pytest.raises(CheckpointError, match="processes: 1 → 2, which changes what a step sees"):
        resume.check(settings, 2, tmp_path / "run")
    twice = config(tmp_path / "twice", training__accumulation=2)
    run(twice)
    shared = config(tmp_path / "twice", training__accumulation=1)
    assert resume.check(shared, 2, tmp_path / "twice") == ["goes on with another training.accumulation: 2 → 1"]


@pytest.mark.slow
def test_resume_refuses_no_second_process_with_half_the_accumulation(tmp_path: Path) -> None:
    """One process with two batches, then two with one each: the weights of the run that stayed alone.

    The worst difference measured is 0 (bound 1e-6): two addends have one sum in either order.
    """
    import shared_work

    steady: dict[str, Any] = {"training__accumulation": 2}
    alone = config(tmp_path / "alone" / "run", **steady)
    (tmp_path / "alone").mkdir()
    train(build_stage(alone), alone.training, Path(alone.output))
    (tmp_path / "both").mkdir()
    shutil.copytree(tmp_path / "alone" / "run", tmp_path / "both" / "run")
    shutil.rmtree(tmp_path / "both" / "run" / WHOLE)
    in_two_processes(shared_work.__file__, tmp_path / "both" / "run", json.dumps({"training__accumulation": 1}))
    assert furthest(tmp_path / "alone/run" / WHOLE, tmp_path / "both/run" / WHOLE) <= 1e-6


def test_resume_refuses_a_wave_of_another_run(tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves of per-task LoRAs are runs of their own, compared in the same place."""
    from tagi.train import teachers
    from tagi.train.trainer import TrainingError

    def stop(*_: object) -> None:
        raise TrainingError("stopped before the bank is gathered")

    stage = {"stage": "teachers", "method": "no_instruction"}
    file = write_config(tmp_path, **stage, training=CONFIG["training"] | {"trainable": ["backbone"]})
    with monkeypatch.context() as patched:
        patched.setattr(teachers, "_gathered", stop)
        assert tagi("train", "teachers", "--config", file).code == 2
    found = tagi("train", "teachers", "--config", file, "--resume", "training.lr=0.5")
    assert found.code == 2 and "training.lr: 0.03 → 0.5" in found.err
    assert tagi("train", "teachers", "--config", file, "--resume").code == 0


@pytest.mark.parametrize("below", ["", "x", "x/y"])
@pytest.mark.parametrize("stage", ["finetune", "teachers"])
def test_an_output_that_is_a_file_or_lies_below_one(tagi: Run, tmp_path: Path, below: str, stage: str) -> None:
    (tmp_path / "afile").write_text("mine")
    output = tmp_path / "afile" / below
    changes = {} if stage == "finetune" else {"stage": "teachers", "method": "no_instruction"}
    found = tagi("train", stage, "--config", write_config(tmp_path, **changes), f"output={output}")
    mistake(found, str(output), "is a file")
    assert (tmp_path / "afile").read_text() == "mine"


def test_an_output_that_may_not_be_written(tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagi.files.os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    mistake(tagi("train", "finetune", "--config", write_config(tmp_path)), "runs", "Permission denied")
    assert not (tmp_path / "runs").exists()


def test_resume_refuses_to_train_a_tokenizer_anew(tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained twice on one text, a tokenizer may number its pieces otherwise: the run's own is taken."""
    from tagi.data import tokenizers

    backbone = CONFIG["backbone"] | {"tokenizer": "unigram", "shape": CONFIG["backbone"]["shape"] | {"vocab_size": 120}}
    file = write_config(tmp_path, backbone=backbone)
    assert tagi("train", "finetune", "--config", file).code == 0
    whole = (tmp_path / "runs" / WHOLE).rename(tmp_path / "whole")
    made: list[int] = []
    monkeypatch.setattr(tokenizers, "unigram", lambda *_, **__: made.append(1))
    assert tagi("train", "finetune", "--config", file, "--resume").code == 0
    assert not made and furthest(whole, tmp_path / "runs" / WHOLE) == 0.0
