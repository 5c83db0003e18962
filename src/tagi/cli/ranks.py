"""`tagi eval p3`: the held-out tasks, their rank classification, and its scores as JSON and as a table."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagi.cli.common import bar
from tagi.cli.scores import Shown, made_by, percent, publish, with_interval
from tagi.config import P3Instruction, RankNorm
from tagi.data.sources.p3_files import EVALUATION, P3Dataset
from tagi.data.types import Task
from tagi.eval.evaluate import InstructionControl
from tagi.eval.rank import accuracy, chance, majority, rank
from tagi.eval.report import Prediction
from tagi.infer.engine import Tagi

HEADER = ("", "prompts", "accuracy", "worst prompt", "best prompt")
REMARK = "Percentages: the mean over prompts, then over tasks; in brackets the 95 % bootstrap interval over tasks."
REFERENCES = {"chance": "choosing at random", "majority": "the place that is right most often"}
STORY_CLOZE = "is not scored: StoryCloze may not be redistributed; `tagi data fetch p3 --help` says how to obtain it"


def held_out(
    data: Path,
    names: Sequence[str] | None,
    *,
    reads: P3Instruction,
    prompts: int | None,
    instances: int | None,
    shots: int,
) -> tuple[list[Task], dict[str, str]]:
    """The held-out tasks under their first prompts, and why others are not here; see `P3Dataset.eval_tasks`."""
    dataset, tasks = P3Dataset(data, instruction=reads), list[Task]()
    here = list(dict.fromkeys(names)) if names else dataset.eval_names()
    for name in here:
        found = dataset.eval_tasks(name, limit=instances, shots=shots)
        first = list(dict.fromkeys(task.name for task in found))[:prompts]
        tasks += [task for task in found if task.name in first]  # where every row is a task, they share a prompt's name
    absent = [] if names else [name for name in EVALUATION if name not in here]
    missing = {name: f"is not scored: there is no {data / 'eval' / name}.jsonl" for name in absent}
    return tasks, missing | {name: STORY_CLOZE for name in absent if name == "story_cloze"}


def score(
    tagi: Tagi,
    tasks: Sequence[Task],
    instruction: InstructionControl,
    norm: RankNorm,
    asked: Mapping[str, Any],
    *,
    output: Path | None,
    as_json: bool,
) -> None:
    """Rank, print and write."""
    began = time.perf_counter()
    with bar("ranking") as report:
        predictions = rank(tagi, tasks, instruction=instruction, norm=norm, progress=report)
    seconds = time.perf_counter() - began
    scores = collect(predictions, tasks)
    scores["control"] = {"instruction": instruction}
    scores["command"] = {**asked, "solve_seconds": seconds, **made_by(tagi)}
    title = f"p3, {len(scores['by_task'])} held-out tasks, {tagi.config.method} (instruction {instruction})"
    publish(scores, title, HEADER, _shown(scores), REMARK, predictions, output, as_json=as_json)


def collect(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> dict[str, Any]:
    """Every figure of a rank classification, as fractions; the interval is 95 % bootstrap over held-out tasks."""
    found = accuracy(predictions)
    interval = found.interval
    return {
        "accuracy": found.mtest11,
        "mtest11": found.mtest11,
        "hypert5": found.hypert5,
        "n": len(predictions),
        "interval": {"accuracy": [interval.low, interval.high] if interval is not None else None},
        "by_task": found.by_task,
        "by_prompt": found.by_prompt,
        "reference": {"chance": chance(tasks), "majority": majority(tasks)},
    }


def _shown(scores: Mapping[str, Any]) -> Shown:
    tasks: list[list[str]] = []
    for task, value in scores["by_task"].items():
        each = [one for prompt, one in scores["by_prompt"].items() if prompt.startswith(f"{task}/")]
        tasks.append([task, f"{len(each)}", percent(value), percent(min(each)), percent(max(each))])
    means = [["MTest11 average", "", with_interval(scores["mtest11"], scores["interval"]["accuracy"]), "", ""]]
    if scores["hypert5"] is not None:
        means.append(["HyperT5 average", "", percent(scores["hypert5"]), "", ""])
    reference = [[REFERENCES[name], "", percent(value), "", ""] for name, value in scores["reference"].items()]
    return [(None, tasks), ("bold", means), ("dim", reference)]
