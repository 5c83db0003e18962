"""Everyday tasks: wordings, families that are held out, and files that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_runs import CONFIG, Run, write_config
from tagi.config import DataConfig
from tagi.data.mixture import Mixture
from tagi.data.sources import Sources
from tagi.data.sources.everyday import Everyday
from tagi.errors import ConfigError, DataError

FAMILIES = {"a_shop": 4, "b_mail": 3, "c_news": 2, "d_pet": 1}


def content(name: str, rows: int = 5, **changes: Any) -> dict[str, Any]:
    values = {
        "Name": name,
        "Categories": [name[0], "any"],
        "Domain": "letters",
        "Definition": [f"Do {name}."],
        "Paraphrases": [f"Please do {name}.", f"{name}, now", f"What is {name}?"],
        "Instances": [{"input": f"{name} row {i}", "output": [f"answer {i}", "another"]} for i in range(rows)],
    }
    return values | changes


def write(folder: Path, part: str, name: str, **changes: Any) -> Path:
    path = folder / part / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(name, **changes)), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for family, count in FAMILIES.items():
        for number in range(count):
            write(tmp_path, "train", f"{family}_{number}")
    for name in ("t_one", "t_two"):
        write(tmp_path, "test", name)
    return tmp_path


def source(folder: Path, **data: Any) -> Everyday:
    return Everyday(DataConfig(source="everyday", path=str(folder), **data))


def test_an_instruction_is_worded_anew_on_every_visit(folder: Path) -> None:
    train = source(folder).train(0)
    assert len(train) == 10
    visits = [train.task(0, visit) for visit in range(40)]
    told = {task.instruction.definition for task in visits}
    assert told == {"Do a_shop_0.", "Please do a_shop_0.", "a_shop_0, now", "What is a_shop_0?"}
    assert {task.name for task in visits} == {"a_shop_0"} and visits[7] == train.task(0, 7)
    assert {len(task.examples) for task in visits} == {5}
    again = [source(folder, seed=1).train(0).task(0, visit).instruction for visit in range(40)]
    assert again != [task.instruction for task in visits]


def test_demonstrations_are_other_rows(folder: Path) -> None:
    for source_of in (source(folder).train(2), source(folder).groups("task", 2)["a_shop_0"]):
        task = source_of.task(0, 3)
        shown = {one.input for one in task.instruction.demonstrations}
        assert len(shown) == 2 and len(task.examples) == 3
        assert not shown & {row.input for row in task.examples}


@pytest.mark.parametrize("seed", range(6))
def test_whole_families_are_held_out(folder: Path, seed: int) -> None:
    held_out = source(folder, valid_tasks=3, valid_instances=2, seed=seed)
    valid = {task.name for task in held_out.valid(0)}
    train = {held_out.train(0).task(i, 0).name for i in range(len(held_out.train(0)))}
    assert len(valid) >= 3 and len(train) + len(valid) == 10
    assert not {name[:6] for name in valid} & {name[:6] for name in train}
    assert {len(task.examples) for task in held_out.valid(0)} == {2}
    assert all(task.instruction.definition.startswith("Do ") for task in held_out.valid(1))


def test_evaluation_names_a_wording(folder: Path) -> None:
    first, third = source(folder).test(0), source(folder, only=("t_two",)).test(1, wording=2)
    assert [task.instruction.definition for task in first] == ["Do t_one.", "Do t_two."]
    assert [task.instruction.definition for task in third] == ["t_two, now"]
    assert len(third[0].instruction.demonstrations) == 1 and first[0].examples[1].targets == ("answer 1", "another")
    with pytest.raises(ConfigError, match="wording: 4 is none of t_one, which has 0 to 3"):
        source(folder).test(0, wording=4)


def test_groups_and_balanced_categories(folder: Path) -> None:
    assert list(source(folder).groups("category", 0)) == ["a", "b", "c", "d"]
    data = DataConfig(source="everyday", path=str(folder), balance="category")
    assert Sources().train(data, 0, seed=0).counts == (1, 1, 1, 1)


def test_target_tasks_are_trained_on_without_their_first_rows(folder: Path) -> None:
    data = DataConfig(source="everyday", path=str(folder), part="test", skip=3)
    train = Sources().train(data, 0, seed=0)
    mixture = Mixture(train, tasks=2, rows=2, seed=0)
    batch = [group for index in range(16) for group in mixture.batch(index)]
    assert {group.task.name for group in batch} == {"t_one", "t_two"}
    assert {row.id[-1] for group in batch for row in group.examples} == {"3", "4"}
    assert Sources().valid(data, 0) == [] and len(Everyday(data).files()) == 2
    with pytest.raises(ConfigError, match="t_one has no more than 5 instances"):
        source(folder, part="test", skip=5).train(0)


def test_a_tokenizer_reads_every_wording_and_no_held_out_task(folder: Path) -> None:
    held_out = source(folder, valid_tasks=3)
    texts = list(held_out.texts())
    names = {task.name for task in held_out.valid(0)}
    assert "What is d_pet_0?" in texts or "d_pet_0" in names
    assert not [text for text in texts for name in names if name in text]
    assert texts.count("another") == 5 * (10 - len(names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Definition": [" "]}, r"Definition\[0\]: is empty"),
        ({"Paraphrases": "one"}, "Paraphrases: must be a list"),
        ({"Instances": []}, "Instances: must not be empty"),
        ({"Instances": [{"input": "", "output": ["x"]}]}, r"Instances\[0\]\.input: is empty"),
        ({"Instances": [{"input": "x", "output": []}]}, r"Instances\[0\]\.output: must not be empty"),
        ({"Categories": []}, "Categories: must not be empty"),
    ],
)
def test_damaged_files(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = write(folder, "test", "t_bad", **changes)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        source(folder).test(0)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere/train: holds no task file"):
        source(tmp_path / "nowhere").train(0)
    with pytest.raises(ConfigError, match=r"data\.valid_tasks: 10 leaves no training task of 10"):
        source(folder, valid_tasks=10).train(0)
    with pytest.raises(ConfigError, match="there is no task 'a_shop_9' here, did you mean a_shop_"):
        source(folder, only=("a_shop_9",)).train(0)


def test_a_run_from_the_command_line(folder: Path, tagi: Run, tmp_path: Path) -> None:
    backbone = CONFIG["backbone"] | {"tokenizer": "unigram", "shape": CONFIG["backbone"]["shape"] | {"vocab_size": 36}}
    data = {"source": "everyday", "path": str(folder), "valid_tasks": 2, "valid_instances": 1}
    assert tagi("train", "finetune", "--config", write_config(tmp_path, data=data, backbone=backbone)).code == 0


def test_the_real_tasks(shared_data: Path) -> None:
    if not (shared_data / "everyday").is_dir():
        pytest.skip("no everyday tasks here")
    real = source(shared_data / "everyday", valid_tasks=32)
    train = real.train(0)
    names = {train.task(i, 0).name for i in range(len(train))}
    held_out = {task.name for task in real.valid(0)}
    assert len(names) + len(held_out) == 320 and 32 <= len(held_out) < 45 and len(real.test(0)) == 40
    assert not {"_".join(name.split("_")[:2]) for name in held_out} & {"_".join(n.split("_")[:2]) for n in names}
