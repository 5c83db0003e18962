"""P3 and in-context learning from the command line: training, FiD as a teacher, rank classification."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_p3 import RTE, TEMPLATES, write

from builders import worst
from cli_runs import CONFIG, Run, mistake, trained, write_config
from tagi.backbones.rows import Rows
from tagi.config import RunConfig
from tagi.config.files import parse
from tagi.data.collate import Batch
from tagi.infer.engine import Tagi
from tagi.losses import soften
from tagi.train.build import build_stage
from tagi.train.objectives.distill import instruct_teacher
from tagi.train.start import start

CHOOSE = RTE.replace("say more", "tell more")
PROMPT = {"style": "t0", "demonstrations": 0, "max_instruction": 32, "max_input": 32, "max_target": 8}
BACKBONE = CONFIG["backbone"] | {"tokenizer": "unigram", "shape": CONFIG["backbone"]["shape"] | {"vocab_size": 36}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets to train on, one held-out task."""
    root = tmp_path_factory.mktemp("p3")
    write(root / TEMPLATES, RTE)
    words = ["rain", "snow", "sun", "wind", "cloud", "storm", "river", "sea", "hill", "tree", "stone", "road", "house"]
    for data_set in ("imdb", "ag_news"):
        write(root / f"templates/{data_set}/templates.yaml", CHOOSE)
        for template in ("tell_more", "does_it_follow"):
            rows = [
                {"inputs_pretokenized": f"the {a} and the {b}", "targets_pretokenized": f"{b} of {data_set}"}
                for a, b in pairwise(words)
            ]
            write(root / f"train/{data_set}_{template}.jsonl", "\n".join(map(json.dumps, rows)))
    rows = [{"premise": f"the {word}.", "hypothesis": "it is", "label": i % 2} for i, word in enumerate(words[:9])]
    write(root / "eval/super_glue_rte.jsonl", "\n".join(map(json.dumps, rows)))
    return root


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    data = {"source": "p3", "path": str(folder), "split": "all", "valid_tasks": 1, "valid_instances": 3}
    return {"backbone": BACKBONE, "prompt": PROMPT, "data": data} | changes


@pytest.fixture(scope="module")
def p3_checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), **settings(folder))


def test_the_hypernetwork_reads_the_template_and_the_model_the_prompt(folder: Path, tmp_path: Path) -> None:
    config = parse(RunConfig, CONFIG | settings(folder) | {"output": str(tmp_path)}, source="t")
    batch, tokenizer = build_stage(config).batch(0), start(config).tokenizer
    assert batch.names[0] in {"imdb_tell_more", "imdb_does_it_follow", "ag_news_tell_more", "ag_news_does_it_follow"}
    told, read = (tokenizer.batch_decode(ids)[0].replace(" ", "") for ids in (batch.instruction_ids, batch.input_ids))
    assert "premise" in told
    assert "andthe" in read


def test_with_full_each_row_is_its_own_instruction(folder: Path, tmp_path: Path) -> None:
    data = settings(folder)["data"] | {"instruction": "full"}
    values = CONFIG | settings(folder, data=data) | {"output": str(tmp_path)}
    with pytest.raises(Exception, match=r"set training\.rows_per_task=1"):
        parse(RunConfig, values, source="t")
    values["training"] = CONFIG["training"] | {"rows_per_task": 1}
    values["backbone"] = BACKBONE | {"shape": BACKBONE["shape"] | {"vocab_size": 26}}
    config = parse(RunConfig, values, source="t")
    batch, tokenizer = build_stage(config).batch(0), start(config).tokenizer
    read = tokenizer.batch_decode(batch.instruction_ids, skip_special_tokens=True)
    assert [text.split() for text in read] == [
        text.split() for text in tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
    ]


def test_eval_p3(tagi: Run, folder: Path, p3_checkpoint: Path, tmp_path: Path) -> None:
    result = tagi("eval", "p3", "--data", folder, "--checkpoint", p3_checkpoint, "-o", tmp_path, "--json")
    found = result.json
    assert (found["n"], list(found["by_task"]), list(found["by_prompt"])) == (
        9,
        ["super_glue_rte"],
        ["super_glue_rte/does it follow"],
    )
    assert found["accuracy"] == found["mtest11"] == found["hypert5"] == found["by_task"]["super_glue_rte"]
    assert found["reference"] == {"chance": 0.5, "majority": pytest.approx(5 / 9)}
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    right = [json.loads(line) for line in lines]
    assert sum(one["Prediction"] == one["Instance"]["output"][0] for one in right) == round(9 * found["accuracy"])
    assert "story_cloze: is not scored" in result.err
    table = tagi("eval", "p3", "--data", folder, "--checkpoint", p3_checkpoint, "--task", "super_glue_rte")
    assert "MTest11 average" in table.out
    assert "story_cloze" not in table.err
    twice = ("--task", "super_glue_rte", "--task", "super_glue_rte")
    assert tagi("eval", "p3", "--data", folder, "--checkpoint", p3_checkpoint, *twice, "--json").json["n"] == 9


def test_eval_p3_scores_the_same_rows_with_demonstrations_from_others(
    tagi: Run, folder: Path, p3_checkpoint: Path, tmp_path: Path
) -> None:
    asked = ("eval", "p3", "--data", folder, "--checkpoint", p3_checkpoint, "--task", "super_glue_rte", "--json")
    none, two = (tagi(*asked, *more).json for more in ((), ("--demonstrations", 2)))
    assert [(one["command"]["demonstrations"], one["n"]) for one in (none, two)] == [(0, 9), (2, 7)]
    for number in (0, 2):
        tagi(*asked, "--instances", 6, "--demonstrations", number, "-o", tmp_path / f"{number}")
    few, shown = (
        [json.loads(line)["Instance"] for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("0", "2")
    )
    assert few == shown and len(few) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "rte"], ["'rte' is no held-out task"]),
        (["--data", "nowhere"], ["nowhere", "holds no held-out task"]),
        (["--norm", "median"], ["median"]),
    ],
)
def test_eval_p3_mistakes(arguments: list[str], words: list[str], tagi: Run, folder: Path, p3_checkpoint: Path) -> None:
    where = [] if "--data" in arguments else ["--data", folder]
    mistake(tagi("eval", "p3", "--checkpoint", p3_checkpoint, *where, *arguments), *words)


# --- FiD --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fid(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FiD-ICL after a few steps."""
    training = CONFIG["training"] | {"trainable": ["backbone"]}
    changes = settings(folder, method="fid_icl", training=training, prompt=PROMPT | {"demonstrations": 3})
    return trained(tmp_path_factory.mktemp("fid"), **changes)


def distilled(folder: Path, fid: Path, output: Path, **teacher: Any) -> dict[str, Any]:
    objective = {"lambda_kl": 1.0, "teacher": {"kind": "fid", "checkpoint": str(fid), "shots": 3} | teacher}
    start = {"backbone": None, "start_from": str(fid), "training": CONFIG["training"] | {"trainable": ["hypernetwork"]}}
    return settings(folder) | start | {"objective": objective, "output": str(output)}


def test_fid_teaches_tagi(folder: Path, fid: Path, tmp_path: Path) -> None:
    final = trained(tmp_path, **distilled(folder, fid, tmp_path / "runs"))
    log = [json.loads(line) for line in (final.parent / "log.jsonl").read_text().splitlines()]
    assert all(entry["kl"] > 0 for entry in log)


@torch.no_grad()
def test_the_teacher_s_logits_are_fid_s_own(folder: Path, fid: Path, tmp_path: Path) -> None:
    """Every row by itself: its task's demonstrations apart, then the prompt."""
    config = parse(RunConfig, CONFIG | distilled(folder, fid, tmp_path), source="t")
    batch = build_stage(config).batch(0)
    assert batch.shots is not None
    assert batch.shots[0].shape[:2] == (2, 3)
    teacher = Tagi.from_pretrained(fid).model
    found = instruct_teacher(teacher, 1.0)(batch)
    for row in range(len(batch.task_index)):
        expected = alone(teacher, batch, row)
        valid = batch.labels[row] != -100
        assert worst(found.log_p[row][valid], soften(expected, 1.0).log_p[0][valid]) < 1e-5  # worst 0.0


def alone(model: Any, batch: Batch, row: int) -> torch.Tensor:
    assert batch.shots is not None
    assert batch.prompt_ids is not None
    assert batch.prompt_mask is not None
    task = int(batch.task_index[row])
    adapter = model.adapt(batch.shots[0][[task]], batch.shots[1][[task]])
    length = int(batch.prompt_mask[row].sum())
    ids = batch.prompt_ids[row : row + 1, :length]
    targets = batch.target_ids[row : row + 1]
    return model.respond(adapter, ids, torch.ones_like(ids), targets, Rows(1, 1)).logits


def test_more_demonstrations_than_rows(tagi: Run, folder: Path, fid: Path) -> None:
    result = tagi("eval", "p3", "--data", folder, "--checkpoint", fid, "--task", "super_glue_rte", "--instances", 7)
    mistake(result, "3 are asked for", "9 rows", "super_glue_rte.jsonl", "too few are left")


def test_fid_is_no_other_teacher(tagi: Run, folder: Path, fid: Path, tmp_path: Path) -> None:
    values = distilled(folder, fid, tmp_path / "runs", kind="instruct")
    mistake(tagi("train", "finetune", "--config", write_config(tmp_path, **values)), "teacher.kind", "fid_icl")


def test_fid_runs_and_has_no_adapter(tagi: Run, fid: Path, tmp_path: Path) -> None:
    """Its demonstrations are read once, its instruction with every input: an adapter would hold half of it."""
    asked = ("--example", "the rain => snow", "--checkpoint", fid)
    assert tagi("run", "the sun", "--input", "the river", *asked, "--json").json["n"] == 1
    mistake(tagi("adapt", "the sun", *asked, "-o", tmp_path / "adapter"), "fid_icl", "no adapter")
