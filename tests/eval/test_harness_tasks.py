"""Task files of lm-evaluation-harness: the packaged ones, and BIG-bench hard's on rows of our own."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")

from harness_runs import BBH, BBH_ROWS, run, write_bbh
from test_export_decoder import chatting

from cli_runs import Run, mistake
from sni_folders import write_sni
from tagi import bundled
from tagi.config import DataConfig
from tagi.data.sources.everyday import Everyday
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.errors import InputError
from tagi.eval.evaluate import predictions
from tagi.eval.evaluate import score as scored
from tagi.eval.harness import PACKAGED, TagiLM, load_tasks
from tagi.eval.harness_tasks import scores
from tagi.infer.engine import Tagi
from tagi.infer.search import GenerationConfig

TWO = ("everyday_calm_title", "everyday_bag_reason")


def test_the_packaged_group_is_all_of_the_everyday_test_tasks() -> None:
    group = yaml.safe_load((PACKAGED / "everyday.yaml").read_text(encoding="utf-8"))
    named = {f"everyday_{path.stem.removeprefix('t_')}": path.stem for path in bundled.everyday().glob("test/*.json")}
    assert group["task"] == sorted(named) and len(named) == 40
    for task, name in named.items():
        file = yaml.safe_load((PACKAGED / f"{task}.yaml").read_text(encoding="utf-8"))
        assert file == {"include": "_everyday", "task": task, "dataset_kwargs": {"name": name}}


def test_everyday_tasks_score_as_tagi_eval_does(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    """The same answers, scored alike, printed and written."""
    asked = ("eval", "lm", "--tasks", ",".join(TWO), "--limit", 3, "--checkpoint", checkpoint)
    done = tagi(*asked, "-o", tmp_path, "--json")
    assert done.json == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    model = Tagi.from_pretrained(checkpoint)
    source = Everyday(DataConfig(source="everyday", path=str(bundled.everyday())))
    table = tagi(*asked).out
    for name in TWO:
        (task,) = [one.first(3) for one in source.test(0) if one.name == name.replace("everyday_", "t_")]
        told, generation = [task.instruction], GenerationConfig(max_new_tokens=128)
        expected = scored(predictions(model, [task], told, told, generation=generation))
        lines = (tmp_path / f"samples_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        samples = sorted(map(json.loads, lines), key=lambda one: one["doc_id"])
        assert [one["resps"] for one in samples] == [[[one.text]] for one in expected.predictions]
        for metric in ("rouge_l", "exact_match"):
            assert done.json["results"][name][f"{metric},none"] == pytest.approx(fmean(getattr(expected, metric)))
            assert name in table and metric in table
    assert done.json["n-samples"] == {name: {"original": 12, "effective": 3} for name in TWO}


def test_the_scores_are_ours_against_every_reference() -> None:
    doc = {"output": ["Oslo", "the city of Oslo"]}
    assert scores(doc, [" oslo."]) == {"rouge_l": 1.0, "exact_match": 1.0}
    assert scores(doc, ["the city"]) == {"rouge_l": pytest.approx(2 / 3), "exact_match": 0.0}


def test_the_group_runs_as_one(tagi: Run, checkpoint: Path) -> None:
    found = tagi("eval", "lm", "--tasks", "everyday", "--limit", 1, "--checkpoint", checkpoint, "--json").json
    assert len(found["results"]) == 41 and found["group_subtasks"]["everyday"] == sorted(found["configs"])
    assert {"rouge_l,none", "exact_match,none"} <= found["groups"]["everyday"].keys()


def test_super_natural_instructions_takes_rows_of_all_tasks_in_turn(tmp_path: Path) -> None:
    """A row's description is its own task's."""
    rows = {"task001_a": ("one", "two", "three"), "task002_b": ("four",)}
    made = [
        Task(
            name, Instruction(f"Do {name}.", (Demonstration("x", "y"),)), ("c",), [Example(t, t, (t, "z")) for t in own]
        )
        for name, own in rows.items()
    ]
    write_sni(tmp_path, made[:1], made, 3)
    _, loaded, asked_for = load_tasks(["sni"], sni=tmp_path)
    tagi = chatting("base")
    model = TagiLM(tagi, instruction="mismatched", tasks=loaded)
    model.check()
    found = run(model, PACKAGED, asked_for, limit=3)
    samples = found["samples"]["sni"]
    assert [one["doc"]["input"] for one in samples] == ["one", "four", "two"]
    told = ["Do task002_b.", "Do task001_a.", "Do task002_b."]
    for one, instruction in zip(samples, told, strict=True):
        generation = GenerationConfig(max_new_tokens=128)
        answers = tagi.solve(instruction, [one["doc"]["input"]], generation=generation)
        assert answers != tagi.solve(one["doc"]["instruction"], [one["doc"]["input"]], generation=generation)
        assert one["resps"] == [answers] and one["target"] == [one["doc"]["input"], "z"]
    with pytest.raises(InputError, match="sni: give the folder"):
        load_tasks(["sni"])


@pytest.mark.parametrize("how", ["adapter", "prompt"])
def test_big_bench_hard_runs_zero_shot(tagi: Run, checkpoint: Path, tmp_path: Path, how: str) -> None:
    """Its own descriptions, filters and metric."""
    names = [f"bbh_zeroshot_{name}" for name in BBH]
    asked = ("eval", "lm", "--tasks", ",".join(names), "--include-path", write_bbh(tmp_path), "--instruction", how)
    done = tagi(*asked, "--checkpoint", checkpoint, "-o", tmp_path, "--json")
    for name, (short, rows) in zip(names, BBH_ROWS.items(), strict=True):
        assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= done.json["results"][name].keys()
        samples = [json.loads(one) for one in (tmp_path / f"samples_{name}.jsonl").read_text().splitlines()]
        assert [one["target"] for one in samples] == [target for _, target in rows] * 2
        description = done.json["configs"][name]["description"]
        assert samples[0]["arguments"][0][0] == f"{description}Q: {rows[0][0]}\nA:" and description.endswith(".\n\n")
        assert short in name and done.json["config"]["instruction"] == how


def test_mistakes_are_one_sentence(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    ask = ("eval", "lm", "--checkpoint", checkpoint, "--tasks")
    mistake(tagi(*ask, TWO[0], "--instruction", "own"), "'own' is not one of", "'mismatched'")
    mistake(tagi(*ask, TWO[0], "--instruction", "mismatched"), "mismatched: needs at least two tasks")
    mistake(tagi(*ask, TWO[0], "--apply-chat-template"), "apply_chat_template: goes with the instruction prompt")
    mistake(tagi(*ask, TWO[0], "--batch-size", 3), "No such option: --batch-size")
    mistake(tagi(*ask, TWO[0], "--include-path", tmp_path / "none"), "none: is no folder of task files")
    mistake(tagi(*ask, TWO[0], "-o", __file__), "is a file, not a folder")
    mistake(tagi(*ask, f"everyday,{TWO[0]}"), f"tasks: {TWO[0]} holds {TWO[0]}, which is asked for already")
    mistake(tagi(*ask, ","), "tasks: none is named")
    mistake(tagi(*ask, "sni"), "sni: give the folder of Super-NaturalInstructions by --data")
    mistake(tagi(*ask, "sni", "--data", tmp_path), "no such folder")
    silent = {"task": "silent", "include": str(PACKAGED / TWO[0]) + ".yaml", "description": ""}
    (tmp_path / "silent.yaml").write_text(json.dumps(silent), encoding="utf-8")
    mistake(tagi(*ask, "silent", "--include-path", tmp_path), "silent: has no description to write an adapter from")


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_of_all_that_the_harness_has(tagi: Run) -> None:
    mistake(tagi("eval", "lm", "--tasks", "bbh_zeroshot_navigat"), "no task 'bbh_zeroshot_navigat'", "_navigate?")


def test_without_the_harness_it_says_how_to_get_it(tagi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagi.cli.harness.find_spec", lambda _: None)
    mistake(tagi("eval", "lm", "--tasks", TWO[0]), "lm-evaluation-harness is not installed: pip install '.[eval]'")
