"""The training tasks that were written later: whole, and nothing of the test tasks among them."""

import json
import re
from pathlib import Path
from typing import Any

from tagi.config import DataConfig
from tagi.data.sources.everyday import Everyday

DATASETS = Path(__file__).resolve().parents[3] / "datasets"
MORE, TEST = (sorted((DATASETS / folder).glob("*.json")) for folder in ("everyday-more/train", "everyday/test"))
Shared = set[tuple[str, ...]]


def read(files: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def runs(text: str, length: int) -> Shared:
    """Every run of so many words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def wordings(task: dict[str, Any]) -> list[str]:
    return [task["Definition"][0], *task["Paraphrases"]]


def test_every_task_is_whole() -> None:
    source = Everyday(DataConfig(source="everyday", path=str(DATASETS / "everyday-more"), valid_tasks=0))
    assert len(source.tasks) == len(MORE) >= 1761
    assert len({one for task in source.tasks for one in task.wordings}) == 4 * len(MORE)
    for task in source.tasks:
        assert len({example.input for example in task.examples}) == len(task.examples) >= 10, task.name


def test_nothing_of_the_test_tasks_is_among_them() -> None:
    inputs: Shared = set().union(*(runs(row["input"], 8) for task in read(TEST) for row in task["Instances"]))
    asked = {text for task in read(TEST) for text in wordings(task)}
    assert len(inputs) > 100 and len(asked) == 160
    for task in read(MORE):
        assert not asked & set(wordings(task)), task["Name"]
        for row in task["Instances"]:
            assert not runs(row["input"], 8) & inputs, task["Name"]


def test_json_answers_parse() -> None:
    asked = [task for task in read(MORE) if "JSON" in task["Definition"][0]]
    assert len(asked) > 10
    for task in asked:
        for row in task["Instances"]:
            json.loads(row["output"][0])
