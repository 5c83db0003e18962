"""Languages of a task, and what a language chooses of a folder of tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_runs import Run, mistake
from tagi.config import DataConfig
from tagi.data.languages import Languages
from tagi.data.sources.sni import Sni
from tagi.data.sources.sni_files import SniDataset
from tagi.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "datasets" / "multilingual"


def languages(source: str = "English", target: str = "English", told: str = "English") -> dict[str, Any]:
    return {"Input_language": [source], "Output_language": target, "Instruction_language": [told]}


STATED = {
    "english": languages(),
    "silent": {},
    "french": languages("French", "French"),
    "to_french": languages("English", "French"),
    "told_german": languages("German", "German", "German"),
    "both": languages("German", "French"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits/default").mkdir(parents=True)
    for part in ("train", "test"):
        (tmp_path / f"splits/default/{part}_tasks.txt").write_text("\n".join(STATED))
    for name, stated in STATED.items():
        rows = [{"id": f"{i}", "input": f"dog {i}", "output": ["狗在睡觉"]} for i in range(2)]
        record = {"Categories": ["Translation"], "Definition": [name], "Positive Examples": [], "Instances": rows}
        (tmp_path / f"tasks/{name}.json").write_text(json.dumps(record | stated))
    return tmp_path


CHOSEN = [
    ("English", ["english", "silent"]),
    ("EN-gb", ["english", "silent"]),
    ("French", ["french", "to_french", "both"]),
    (" german ", ["told_german", "both"]),
    ("non-english", ["french", "to_french", "told_german", "both"]),
    ("All", list(STATED)),
]


@pytest.mark.parametrize(("language", "names"), CHOSEN)
def test_what_a_language_chooses_to_score_and_to_train_on(language: str, names: list[str], folder: Path) -> None:
    tasks, left_out = SniDataset(folder, language=language).chosen("test", ())
    assert [task.name for task in tasks] == names
    assert left_out.keys() == STATED.keys() - set(names)
    source = Sni(DataConfig(source="sni", path=str(folder), language=language))
    assert [task.name for task in source.tasks] == [task.name for task in source.test(0)] == names


def test_a_task_keeps_its_languages(folder: Path) -> None:
    both = SniDataset(folder, language="all").load("both")
    assert both.languages == Languages(("German",), ("French",), ("English",))
    assert both.languages.names == both.first(1).languages.others == ("German", "French")
    assert SniDataset(folder).load("silent").languages.names == ("English",)


def test_an_unknown_language_is_answered_by_those_that_exist(folder: Path) -> None:
    known = r"language: none of 6 tasks is Frnch; there are tasks in English; French; German$"
    with pytest.raises(DataError, match=known):
        SniDataset(folder, language="Frnch").chosen("test", ())
    with pytest.raises(DataError, match=known):
        _ = Sni(DataConfig(source="sni", path=str(folder), language="Frnch")).tasks
    with pytest.raises(ConfigError, match=r"french: is not German \(French\); choose its language"):
        SniDataset(folder, language="German").chosen("test", ["french"])


def test_only_the_benchmark_states_languages() -> None:
    with pytest.raises(ValueError, match="language=French chooses tasks of sni; source=everyday states no languages"):
        DataConfig(source="everyday", path="x", language="French")


@pytest.mark.parametrize("value", [1, ["French", 2], {"French": True}])
def test_languages_of_another_type_are_refused(value: Any, folder: Path) -> None:
    path = folder / "tasks/french.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"Output_language": value}))
    with pytest.raises(DataError, match=r"french\.json: Output_language"):
        SniDataset(folder, language="French").chosen("test", ())


def test_on_the_command_line(tagi: Run, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    asked = ("eval", "sni", "--checkpoint", checkpoint, "--data", folder)
    result = tagi(*asked, "--language", "all", "-o", tmp_path / "scores", "--json")
    counts = {name: group["n"] for name, group in result.json["by_language"].items()}
    assert counts == {"English": 4, "French": 6, "German": 4}
    assert (result.json["command"]["language"], result.json["command"]["left_out"]) == ("all", 0)
    assert "| French | 6 |" in (tmp_path / "scores/scores.md").read_text()
    # copying a task's commonest answer is right: of pieces, not of words, which Chinese has none of
    assert result.json["reference"]["majority"] == {"rouge_l": pytest.approx(4 / 6), "exact_match": 1.0}
    scores = tmp_path / "scores"
    again = tagi("eval", "compare", "--ours", scores, "--theirs", scores, "--metric", "rouge_l", "--json")
    assert again.json["ours"] == pytest.approx(result.json["rouge_l"])  # the file says which tasks are scored by pieces
    mistake(tagi(*asked, "--language", "Frnch"), "none of 6 tasks is Frnch; there are tasks in English; French; German")
    assert "2 tasks are left out, since they are English" in tagi(*asked, "--language", "non-english").err


def test_the_real_files_are_english(shared_data: Path) -> None:
    data = SniDataset(shared_data / "sni", language="all")
    tasks, left_out = data.chosen("test", (), 1)
    assert (len(tasks), left_out) == (17, {})
    assert {task.languages.names for task in tasks} == {("English",)}
    with pytest.raises(DataError, match="language: none of 17 tasks is non-english; there are tasks in English"):
        SniDataset(shared_data / "sni", language="non-english").chosen("test", (), 1)


def test_our_own_tasks_in_other_languages() -> None:
    tasks, left_out = SniDataset(OURS, language="non-english").chosen("test", ())
    assert (len(tasks), left_out) == (10, {})
    assert all(len(task.examples) == 10 and len(task.instruction.demonstrations) == 2 for task in tasks)
    assert len({name for task in tasks for name in task.languages.names}) == 9
    inputs = [row.input for task in tasks for row in task.examples]
    shown = {demonstration.input for task in tasks for demonstration in task.instruction.demonstrations}
    assert len(set(inputs)) == 100 and not shown & set(inputs)
