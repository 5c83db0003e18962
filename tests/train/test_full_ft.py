"""Full FT: training on the target task itself, never on the instances that it is scored on."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_runs import CONFIG, Run, mistake, trained, write_config
from tagi.config import DataConfig, RunConfig
from tagi.config.files import parse
from tagi.data.collate import Batch
from tagi.data.sources import Sources
from tagi.data.sources.base import later
from tagi.data.sources.micro import Micro
from tagi.data.types import Instruction, Task
from tagi.errors import ConfigError
from tagi.train.build import build_stage
from tagi.train.start import start

KEPT = 10


def settings(**data: Any) -> dict[str, Any]:
    training = CONFIG["training"] | {"trainable": ["backbone"], "steps": 2}
    part = CONFIG["data"] | {"part": "test", "skip": KEPT} | data
    return {"stage": "metatrain", "method": "full_ft", "training": training, "data": part}


def config(output: Path, **data: Any) -> RunConfig:
    return parse(RunConfig, CONFIG | settings(**data) | {"output": str(output)}, source="t")


def test_training_rows_are_the_target_s_and_none_is_scored(tmp_path: Path) -> None:
    split = Micro(config(tmp_path).data).split
    name = split.test[3].name
    made = config(tmp_path, only=[name])
    stage, tokenizer = build_stage(made), start(made).tokenizer
    examples = split.test[3].task(demonstrations=1).examples
    (source,), scored = (
        Sources().train(made.data, made.demonstrations, made.training.seed).sources,
        {one.input for one in examples[:KEPT]},
    )
    trained_on = source.task(0, 0).examples
    # of a million rows a batch meets the scored ones too seldom to prove anything by itself
    assert (len(trained_on), trained_on[0]) == (len(examples) - KEPT, examples[KEPT])
    for number in range(20):
        batch: Batch = stage.batch(number)
        assert set(batch.names) == {name}
        shown = tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
        assert not any(text.endswith(f" {one}") for text in shown for one in scored)


def test_the_target_tasks_are_those_that_others_are_scored_on(tmp_path: Path) -> None:
    made = config(tmp_path, valid_tasks=7)
    unseen = {task.name for task in Micro(parse(RunConfig, CONFIG | {"output": "x"}, source="t").data).split.test}
    stage = build_stage(made)
    names = {name for number in range(10) for name in stage.batch(number).names}
    held_out = CONFIG["data"] | {"valid_tasks": 7}
    theirs = {task.name for task in Micro(DataConfig.model_validate(held_out)).split.test}
    assert names <= theirs != unseen and Sources().valid(made.data, 1) == []


def test_later_is_a_task_without_its_beginning() -> None:
    letters: Any = "abcdef"
    task = Task("t", Instruction("x"), (), letters)
    rest: Any = later(task, 2).examples
    assert (len(rest), rest[0], rest[-1], rest[1:3], list(rest)) == (4, "c", "f", ["d", "e"], list("cdef"))
    with pytest.raises(IndexError):
        rest[4]
    with pytest.raises(ConfigError, match="t has no more than 6 instances"):
        later(task, 6)


def test_from_the_command_line(tagi: Run, tmp_path: Path) -> None:
    name = Micro(config(tmp_path).data).split.test[0].name
    checkpoint = trained(tmp_path, **settings(only=[name]))
    tagi("doctor")  # what training printed is gone
    found = tagi("eval", "micro", "--checkpoint", checkpoint, "--task", name, "--instances", KEPT, "--json").json
    assert (found["n"], list(found["by_task"])) == (KEPT, [name])


def test_sni(shared_data: Path, tmp_path: Path) -> None:
    sni = shared_data / "sni"
    name = (sni / "splits/default/test_tasks.txt").read_text().split()[0]
    content = json.loads((sni / f"tasks/{name}.json").read_text())["Instances"]
    data = {"source": "sni", "path": str(sni), "part": "test", "skip": 50, "only": [name]}
    backbone = CONFIG["backbone"] | {"tokenizer": "unigram", "shape": CONFIG["backbone"]["shape"] | {"vocab_size": 300}}
    values = CONFIG | settings() | {"data": data, "backbone": backbone, "output": str(tmp_path)}
    stage = build_stage(parse(RunConfig, values, source="t"))
    assert set(stage.batch(0).names) == {name}
    values["data"] = data | {"skip": len(content)}
    with pytest.raises(ConfigError, match=f"{name} has no more than {len(content)} instances"):
        build_stage(parse(RunConfig, values, source="t"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "metatrain"}, ["data.part", "metatrain is trained on the part train"]),
        ({"data": CONFIG["data"]}, ["data.part", "full_ft is trained on the part test"]),
        ({"data": CONFIG["data"] | {"part": "test"}}, ["skip says how many instances"]),
        ({"data": CONFIG["data"] | {"part": "test", "skip": 5, "only": ["no"]}}, ["there is no task 'no' here"]),
    ],
)
def test_mistakes(changes: dict[str, Any], words: list[str], tagi: Run, tmp_path: Path) -> None:
    mistake(tagi("train", "metatrain", "--config", write_config(tmp_path, **settings() | changes)), *words)


def test_tasks_by_name(tagi: Run, checkpoint: Path) -> None:
    mistake(tagi("eval", "micro", "--checkpoint", checkpoint, "--task", "no"), "there is no task 'no' here")
