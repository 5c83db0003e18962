"""Tasks of lm-evaluation-harness that its tests write, and runs of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = (
    ("one two", ["three", "four five", "six"], 0),
    ("the red wolf " * 30, ["wolf", "a blue dog"], 1),  # longer than the small models read
    ("plum\n", [" saw", "saw"], 1),
    ("x", ["yes", "no", "yes, no"], 2),
)
DESCRIPTIONS = {"choosing": "Choose the last word.", "writing": "Write the words backwards.", "going_on": "Go on."}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "choosing": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["e", "zz"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "going_on": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{choices[gold]}}",
        "metric_list": [{"metric": "acc"}],
    },
}

BBH = ("navigate", "boolean_expressions")
BBH_ROWS = {
    "navigate": [("Do you return? Turn left.\nOptions:\n- Yes\n- No", "Yes"), ("Take 2 steps.", "No")],
    "boolean_expressions": [("not True is", "False"), ("True or False is", "True"), ("not not False is", "False")],
}


def write_tasks(folder: Path, **changes: Mapping[str, Any]) -> Path:
    """One task of each kind on the same few rows, whatever of it is changed."""
    rows = [{"text": text, "choices": choices, "gold": gold} for text, choices, gold in ROWS]
    file, cache = folder.parent / "harness.jsonl", folder.parent / "harness-cache"  # read once for all tests
    if not file.exists():
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, kind in KINDS.items():
        shared = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(cache)},
            "test_split": "test",
            "description": f"{DESCRIPTIONS[name]}\n\n",
            "doc_to_text": "{{text}}",
        }
        text = json.dumps({**shared, **kind, **changes.get(name, {})})  # JSON is YAML
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def write_bbh(folder: Path) -> Path:
    """Two of the harness's own task files, unchanged but for where their rows come from."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    theirs = Path(lm_eval.__file__).parent / "tasks" / "bbh" / "zeroshot"
    for name in BBH:
        lines = [json.dumps({"input": text, "target": target}) for text, target in BBH_ROWS[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        where = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        ours = {"include": str(theirs / f"{name}.yaml"), "dataset_path": "json", "dataset_kwargs": where}
        (folder / f"{name}.yaml").write_text(json.dumps(ours), encoding="utf-8")
    return folder


def run(model: Any, folder: Path, tasks: Sequence[Any] = tuple(KINDS), **more: Any) -> dict[str, Any]:
    """The harness's results of some tasks of a folder."""
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    evaluate: Any = lm_eval.simple_evaluate  # whose decorator hides its parameters
    found = evaluate(model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **more)
    return dict(found)


def said(found: Mapping[str, Any], task: str) -> list[list[Any]]:
    """What the model said to every row of a task: texts, or pairs of a log-likelihood and whether it is greedy."""
    rows = sorted(found["samples"][task], key=lambda row: row["doc_id"])
    return [[answer for (answer,) in row["resps"]] for row in rows]
