"""What an evaluation leaves out is said, and where nothing is left to score it says so instead of tracing back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_runs import Run, mistake
from tagi.config import CorpusConfig
from tagi.data.sources.sni_files import SniDataset
from tagi.data.types import Example, Instruction, Task
from tagi.errors import ConfigError, DataError, InputError
from tagi.eval import evaluate, rank
from tagi.eval.report import write_predictions
from tagi.infer.engine import Tagi
from tagi.pretraining import bits


def sni(root: Path, test: dict[str, dict[str, Any]], train: dict[str, dict[str, Any]] | None = None) -> SniDataset:
    """A folder of the benchmark with those tasks."""
    for part, tasks in (("test", test), ("train", train or test)):
        (root / "tasks").mkdir(parents=True, exist_ok=True)
        (root / "splits/default").mkdir(parents=True, exist_ok=True)
        (root / f"splits/default/{part}_tasks.txt").write_text("\n".join(tasks))
        for name, content in tasks.items():
            (root / "tasks" / f"{name}.json").write_text(json.dumps(content))
    return SniDataset(root)


def task(*rows: tuple[str, str], **more: Any) -> dict[str, Any]:
    instances = [{"id": f"{i}", "input": source, "output": [target]} for i, (source, target) in enumerate(rows)]
    shared = {"Categories": ["Copying"], "Definition": ["Repeat the input."], "Positive Examples": []}
    return {**shared, "Instances": instances, **more}


def languages(value: Any) -> dict[str, Any]:
    return task(("dog", "dog"), **dict.fromkeys(("Input_language", "Output_language", "Instruction_language"), value))


ENGLISH = [
    "en",
    "eng",
    "EN",
    "en-US",
    "en_gb",
    "English",
    "english",
    " ENGLISH ",
    ["en"],
    ["English", "en"],
    [],
    [""],
    None,
]
OTHER = ["fr", "French", ["English", "Hindi"], ["en", "xx"], "Klingon", "enx", "Old English", ["de"]]


@pytest.mark.parametrize("value", ENGLISH)
def test_language_names_and_codes_are_english(value: Any, tmp_path: Path) -> None:
    assert sni(tmp_path, {"a": languages(value), "b": languages("de")}).by_language(["a", "b"])[0].keys() == {"a"}


@pytest.mark.parametrize("value", OTHER)
def test_other_languages_are_said(value: Any, tmp_path: Path) -> None:
    dataset = sni(tmp_path, {"a": languages(value), "b": languages("en")})
    english, left_out = dataset.chosen("test", ())
    assert [task.name for task in english] == ["b"] and left_out.keys() == {"a"} and left_out["a"]
    with pytest.raises(ConfigError, match=r"a: is not English \(.+\); choose its language"):
        dataset.chosen("test", ["a"])
    with pytest.raises(DataError, match=r"language: none of 1 tasks is English; there are tasks in .+"):
        dataset.by_language(["a"])


def test_languages_on_the_command_line(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    others = {name: languages(name) for name in ("fr", "de", "hi", "zh")}
    sni(tmp_path, {**others, "here": languages("en")})
    result = tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path, "--json")
    assert (result.json["n"], result.json["command"]["left_out"]) == (1, 4)
    assert "note: 4 tasks are left out, since they are not English (fr: fr; de: de; hi: hi; …)" in result.err
    mistake(
        tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path, "--task", "fr"),
        "fr: is not English (fr); choose its language to use it",
    )


def test_categories_of_one_look_are_one(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    one = task(("dog", "dog"))
    sni(tmp_path, {"a": one | {"Categories": ["Text  Copying"]}, "b": one | {"Categories": ["Text Copying\u00a0"]}})
    found = tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path, "--json").json["by_category"]
    assert {name: value["n"] for name, value in found.items()} == {"Text Copying": 2}


def test_a_task_named_twice_is_scored_once(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    sni(tmp_path, {"a": task(("dog", "dog"), ("cat", "cat")), "b": task(("bus", "bus"))})
    asked = ("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path, "--task", "a")
    once, twice = (tagi(*asked, *more, "--json").json for more in ((), ("--task", "a")))
    assert once["n"] == twice["n"] == 2


def test_nothing_left_of_what_training_has(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    seen, other = task(("dog", "dog"), ("cat", "cat")), task(("bus", "bus"))
    sni(tmp_path / "copy", {"a": seen}, {"z": seen})
    mistake(
        tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path / "copy", "--drop-seen"),
        "nothing is left to score",
    )
    sni(tmp_path / "two", {"a": seen, "b": other}, {"z": seen})
    result = tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path / "two", "--drop-seen", "--json")
    assert result.json["n"] == 1
    assert result.json["interval"] == {"rouge_l": None, "exact_match": None}
    assert "note: 2 rows are left out, since a training task has them; 1 of 2 tasks stay" in result.err


def test_nothing_left_to_compare(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    sni(tmp_path / "one", {"a": task(("bus", "bus"), ("dog", "dog"))})
    assert tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path / "one", "-o", tmp_path / "s").code == 0
    compared = tagi("eval", "compare", "--ours", tmp_path / "s", "--theirs", tmp_path / "s", "--json")
    assert compared.json["interval"] is None and compared.json["verdict"] == "unresolved"
    assert compared.json["difference"] == 0.0
    assert "an interval over tasks needs two at least" in compared.err
    assert "nan" not in tagi("eval", "compare", "--ours", tmp_path / "s", "--theirs", tmp_path / "s").out.lower()
    write_predictions(tmp_path / "e" / "predictions.jsonl", [])
    empty = tagi("eval", "compare", "--ours", tmp_path / "e", "--theirs", tmp_path / "e")
    mistake(empty, "hold no predictions to compare")
    mistake(
        tagi("eval", "compare", "--ours", tmp_path / "s", "--theirs", tmp_path / "e"), "do not hold the same examples"
    )


def test_unlabelled_tasks_are_refused_and_empty_answers_said(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    sni(tmp_path / "some", {"a": task(("bus", "bus"), ("dog", ""))})
    assert (
        "note: 1 rows have an empty answer"
        in tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path / "some").err
    )
    sni(tmp_path / "none", {"a": task(("bus", ""), ("dog", " "))})
    mistake(
        tagi("eval", "sni", "--checkpoint", checkpoint, "--data", tmp_path / "none"),
        "a.json: Instances: all outputs are empty",
    )


def test_nothing_left_of_no_text(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        (tmp_path / f"c4-{name}.1.json").write_text('{"text": ""}\n{"text": "a"}\n')
    mistake(
        tagi("eval", "text", "--checkpoint", checkpoint, "--data", tmp_path),
        "nothing is left to score: none of 2 documents has 3 tokens",
    )
    mistake(tagi("eval", "probes", "--checkpoint", checkpoint, "--data", tmp_path), "too few for tasks")
    (tmp_path / "c4-validation.1.json").write_text("\n")
    mistake(
        tagi("eval", "text", "--checkpoint", checkpoint, "--data", tmp_path),
        "nothing is left to score: none of 0 documents has 3 tokens",
    )


@pytest.fixture
def opened(checkpoint: Path) -> Tagi:
    return Tagi.from_pretrained(checkpoint)


def test_nothing_left_in_python(opened: Tagi) -> None:
    none = Task("t", Instruction("Repeat."), ("c",), [])
    for tasks, words in (([], "there is no task"), ([none], "of t: it has no example")):
        for score in (evaluate.evaluate, rank.rank):
            with pytest.raises(InputError, match=f"nothing is left to score.*{words}"):
                score(opened, tasks)
    row = Example("1", "cat", ("cat",), ("cat", "dog"))
    one = Task("t", Instruction("Repeat."), ("c",), [row])
    for score in (evaluate.evaluate, rank.rank):
        with pytest.raises(ConfigError, match="at least two tasks"):
            score(opened, [one], instruction="shuffled")


def test_non_finite_likelihoods_choose_nothing(opened: Tagi, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Example("1", "cat", ("cat",), ("cat", "dog"))
    with torch.no_grad():
        opened.model.backbone.embedding.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="t: the model's likelihoods are not a number"):
        rank.rank(opened, [Task("t", Instruction("Repeat."), ("c",), [row])])
    with pytest.raises(InputError, match="the model's likelihoods are not a number"):
        bits.bits_per_byte(opened, ["the cat saw the dog and the wolf"], CorpusConfig(c4="x", length=16), "prefix")
