"""The named runs: Table 6, dry runs without weights, data or a network, and all stages in order."""

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_runs import CONFIG, Run, mistake
from tagi import methods
from tagi.cli import train as train_command
from tagi.config import RunConfig
from tagi.config import files as config_files
from tagi.data.segments import MAX_LENGTH
from tagi.errors import ConfigError
from tagi.repro import listing
from tagi.repro import runs as registry
from tagi.repro.runs import RUNS, named

STAGES = [(name, stage) for name in RUNS for stage in named(name)]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "runs.md"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "stage"),
    [pytest.param(*one, marks=[] if one[0] == "sni-base-def" else pytest.mark.slow) for one in STAGES],
)
def test_every_stage_of_every_run_is_planned_offline(name: str, stage: str, tagi: Run, alone: Path) -> None:
    result = tagi("train", stage, "--config", name, "--dry-run", "--json")
    assert result.code == 0
    found = result.json
    assert (found["stage"], found["tokens_are"]) == (stage, "upper bound")
    assert min(found["flops"], found["steps"], found["memory"]["total"], found["parameters"]["backbone"]) > 0
    assert list(alone.iterdir()) == []


@pytest.mark.slow
def test_all_prints_the_plan_of_each_stage(tagi: Run, alone: Path) -> None:
    arguments = ("train", "all", "--config", "sni-base-24gb", "--dry-run")
    shown, found = tagi(*arguments).out, tagi(*arguments, "--json").json
    assert list(found["stages"]) == ["metatrain", "teachers", "pretrain", "finetune"]
    assert [shown.count(f"{stage}: ") for stage in found["stages"]] == [1, 1, 1, 1]
    assert found["flops"] == sum(one["flops"] for one in found["stages"].values())
    assert found["memory"] < 20e9 and found["flops"] < 24 * 3600 * 15e12
    assert list(alone.iterdir()) == []


TABLE_6: dict[str, tuple[float, int, int, int, int, int]] = {
    "sni-base-def": (1e-4, 8, 2, 1024, 128, 0),
    "sni-base-def2pos": (1e-4, 8, 2, 1024, 128, 2),
    "sni-xl-def": (5e-5, 2, 4, 1024, 128, 0),
    "sni-xl-def2pos": (5e-5, 2, 4, 1024, 128, 2),
    "sni-xxl-def": (5e-5, 1, 2, 1024, 128, 0),
    "sni-xxl-def2pos": (5e-5, 1, 2, 1024, 128, 2),
    "p3-base-t5lm": (1e-4, 8, 2, 512, 64, 0),
    "p3-base-t0": (1e-4, 8, 2, 512, 64, 0),
    "p3-large-t5lm": (1e-4, 4, 4, 512, 64, 0),
    "p3-large-t0": (1e-4, 4, 4, 512, 64, 0),
    "p3-xl-t5lm": (5e-5, 2, 4, 512, 64, 0),
    "p3-xl-t0": (5e-5, 2, 4, 512, 64, 0),
}


def test_every_run_of_the_paper_is_there() -> None:
    assert set(RUNS) == set(TABLE_6) | {"sni-base-24gb"}


@pytest.mark.parametrize("name", TABLE_6)
def test_finetuning_is_table_6(name: str) -> None:
    config = named(name)["finetune"]
    t, p = config.training, config.prompt
    found = (t.lr, t.tasks_per_batch * t.rows_per_task, t.accumulation, p.max_input, p.max_target, p.demonstrations)
    assert found == TABLE_6[name]
    assert (t.steps, t.optimizer, t.precision, t.warmup) == (20_000, "adamw", "bf16", 0.02)
    assert config.hypernetwork.rank == 32
    assert (config.objective.lambda_kl, config.objective.temperature) == (5.0, 3.0)


@pytest.mark.parametrize("name", TABLE_6)
def test_the_earlier_stages_are_table_6(name: str) -> None:
    run = named(name)
    t = run["pretrain"].training
    found = (t.steps, t.tasks_per_batch * t.rows_per_task, t.accumulation, t.optimizer, t.lr, t.precision)
    assert found == (50_000, 8, 1, "adafactor", 1e-3, "fp32")
    assert ("teachers" in run) == ("xxl" not in name) == bool(run["finetune"].objective.lambda_ins)
    if "teachers" in run:
        t = run["teachers"].training
        found = (t.steps, t.tasks_per_batch * t.rows_per_task, t.accumulation, t.optimizer, t.lr, t.precision)
        assert found == (10_000, 8, 2, "adamw", 1e-4, "bf16")
        assert run["teachers"].teachers.rank == 32


def longest(config: RunConfig) -> int:
    """Tokens that a stage's language model reads at once, at most."""
    return config.prompt.longest_prompt if methods.get(config.method).prompt else config.prompt.max_input


@pytest.mark.parametrize("name", TABLE_6)
def test_lengths_are_table_6(name: str) -> None:
    """1,024 tokens in, 128 out; in P3's finetuning 512 and 64. The teacher of Eq. 5 reads (a; b) within the same."""
    run, p3 = named(name), name.startswith("p3")
    for stage in run.keys() & {"metatrain", "teachers"}:
        assert (longest(run[stage]), run[stage].prompt.max_target) == (1024, 128)
    finetune, teacher = run["finetune"].prompt, run["finetune"].objective.teacher
    assert teacher is not None and teacher.kind == ("fid" if p3 else "instruct")
    read = longest(run["finetune"]), finetune.longest_prompt, finetune.max_target
    assert read == ((512, 512, 64) if p3 else (1024, 1024, 128))
    assert MAX_LENGTH == 1024  # of a document in pretraining


def test_the_run_for_one_gpu_cuts_inputs_and_no_prompts() -> None:
    """Student and LoRAs read 512 tokens of the input alone, its own choice; with the instruction it is 1,024."""
    run = named("sni-base-24gb")
    assert [longest(run[stage]) for stage in ("metatrain", "teachers", "finetune")] == [1024, 512, 512]
    assert run["finetune"].prompt.longest_prompt == 1024


@pytest.mark.parametrize("name", RUNS)
def test_every_reference_to_another_stage_is_to_an_earlier_output(name: str) -> None:
    written: set[str] = set()
    for config in named(name, ["output=elsewhere"]).values():
        teacher = config.objective.teacher
        for reference in (config.start_from, config.bank, config.bank_base, teacher.checkpoint if teacher else None):
            assert reference is None or reference in written or not reference.startswith(("runs", "elsewhere"))
        written.add(f"{config.output}/final")
    assert all(one.startswith("elsewhere/") for one in written)


def test_overrides_go_to_every_stage_or_to_the_one_they_name() -> None:
    changes = ["training.seed=7", "finetune.training.steps=10", "pretrain.data.path=/c4", "teachers.rank=8"]
    run = named("sni-base-24gb", changes)
    assert {config.training.seed for config in run.values()} == {7}
    assert (run["finetune"].training.steps, run["pretrain"].training.steps) == (10, 20_000)
    assert (run["pretrain"].data.path, run["finetune"].data.path) == ("/c4", "data/sni")
    assert run["teachers"].teachers.rank == 8
    one = named("sni-base-24gb", ["data.path=/x"], stage="finetune")
    assert (one["finetune"].data.path, one["pretrain"].data.path) == ("/x", "data/c4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "--config", "sni-bas-def"], ["sni-bas-def", "did you mean sni-base-def?", "tagi runs"]),
        (["finetune", "--config", "qqqq"], ["qqqq", "neither a config file nor a named run", "tagi runs"]),
        (["metatrain", "--config", "sni-xl-def"], ["no stage metatrain", "teachers, pretrain, finetune"]),
        (["all", "--config", "sni-xl-def", "data.path=/x"], ["read different data", "pretrain.data.path=/x"]),
        (["all", "--config", "sni-xl-def", "finetune.training.stepz=1"], ["finetune", "did you mean steps?"]),
        (["finetune", "--config", "p3-xl-t0"], ["runs/p3-xl-t0/pretrain/final", "tagi.json is missing"]),
    ],
)
def test_mistakes(arguments: list[str], words: list[str], tagi: Run, alone: Path) -> None:
    mistake(tagi("train", *arguments), *words)
    assert list(alone.iterdir()) == []


def test_a_file_has_one_stage(tagi: Run, tmp_path: Path) -> None:
    from cli_runs import write_config

    mistake(tagi("train", "all", "--config", write_config(tmp_path)), "run.yaml", "finetune", "named run")


def small_run(output: str) -> dict[str, RunConfig]:
    """Two stages of a few steps each on microtasks."""

    def config(stage: str, **changes: Any) -> RunConfig:
        return config_files.parse(
            RunConfig, CONFIG | {"stage": stage, "output": f"{output}/{stage}"} | changes, source="t"
        )

    training = CONFIG["training"] | {"steps": 2, "trainable": ["backbone"]}
    first = config("metatrain", method="metatrain", training=training)
    return {"metatrain": first, "finetune": config("finetune", backbone=None, start_from=f"{first.output}/final")}


def test_all_runs_every_stage_then_skips_the_finished_and_resumes(
    tagi: Run, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.RUNS, "small", small_run)
    command = ("train", "all", "--config", "small")
    first = tagi(*command)
    assert (first.code, first.out) == (0, "runs/small/finetune/final\n")
    final = alone / "runs/small/finetune/final"
    final.rename(final.with_name("kept"))
    again = tagi(*command, "--json")
    assert "metatrain: runs/small/metatrain/final is there already" in again.err
    assert again.json["checkpoint"] == "runs/small/finetune/final"
    log = (alone / "runs/small/finetune/log.jsonl").read_text().splitlines()
    assert [yaml.safe_load(line)["step"] for line in log] == [1, 2, 3, 4]


def test_one_stage_of_a_run_does_not_overwrite(tagi: Run, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RUNS, "small", small_run)
    assert tagi("train", "metatrain", "--config", "small").code == 0
    mistake(tagi("train", "metatrain", "--config", "small"), "already holds a run")
    mistake(tagi("train", "finetune", "--config", "small", "output=other"), "other/metatrain/final")


def test_runs_lists_every_run(tagi: Run) -> None:
    """With the steps that the plans say, which are in the documentation; their costs take a minute to count."""
    assert [one["name"] for one in tagi("runs", "--json").json["runs"]] == list(RUNS)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"| {' | '.join(listing.row(name, costs=False).cells())} |" in text for name in RUNS)


@pytest.mark.slow
def test_the_table_in_the_documentation_is_in_sync() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert listing.refreshed(text) == text
    assert all(f"| {name} |" in text for name in RUNS)


def test_help_shows_a_named_run() -> None:
    assert "tagi train all --config sni-base-24gb --dry-run" in train_command.EXAMPLE


def test_an_unknown_run_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="neither a config file nor a named run"):
        named("nothing")
