"""The scores of an evaluation as one JSON object, and that object as a table and in files."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tagi as package
from tagi.cli.common import print_json, stderr, stdout, table
from tagi.eval.evaluate import Evaluation
from tagi.eval.report import Prediction, bootstrap, markdown_table, write_predictions
from tagi.files import write_text
from tagi.infer.engine import Tagi

METRICS = {"rouge_l": "ROUGE-L", "exact_match": "exact match"}
HEADER = ("", "n", *METRICS.values())
REMARK = "Scores are percentages, in brackets the 95 % bootstrap interval over tasks."
Shown = Sequence[tuple[str | None, Sequence[Sequence[str]]]]
"""Groups of a table's rows, each with its style."""
REFERENCES = {
    "copy_input": "copying the input",
    "copy_demonstration": "copying the first demonstration",
    "majority": "the task's commonest answer",
}


def made_by(tagi: Tagi) -> dict[str, str]:
    """Which model of which version an evaluation is of."""
    return {"method": tagi.config.method, "fingerprint": tagi.fingerprint(), "version": package.__version__}


def collect(evaluation: Evaluation, reference: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Every figure of an evaluation; all scores are fractions, intervals are 95 % bootstrap over tasks.

    Every example weighs the same, and a task counts in its first category, as in the benchmark.
    """
    every = range(len(evaluation.predictions))
    return {
        **_means(evaluation, every),
        "n": len(every),
        "interval": {metric: interval(evaluation, metric) for metric in METRICS},
        "by_category": _groups(evaluation, [one.categories[:1] for one in evaluation.predictions]),
        "by_language": _groups(evaluation, [one.languages.names for one in evaluation.predictions]),
        "by_task": _groups(evaluation, [[task] for task in evaluation.tasks]),
        "reference": {name: _means(one, every) for name, one in reference.items()},
    }


def by_part(evaluation: Evaluation, parts: int) -> list[dict[str, float]]:
    """Means of so many equal parts of an evaluation, in their order."""
    each = len(evaluation.predictions) // parts
    return [_means(evaluation, range(part * each, (part + 1) * each)) for part in range(parts)]


def _means(evaluation: Evaluation, rows: Sequence[int]) -> dict[str, float]:
    return {metric: fmean(getattr(evaluation, metric)[row] for row in rows) for metric in METRICS}


def _groups(evaluation: Evaluation, names: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Means of the groups that examples count in, in alphabetical order."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for number, its in enumerate(names):
        for name in its:
            rows[name].append(number)
    return {name: {"n": len(rows[name]), **_means(evaluation, rows[name])} for name in sorted(rows)}


def interval(evaluation: Evaluation, metric: str, seed: int = 0) -> list[float] | None:
    """Low and high end of a metric's 95 % interval; None where there is a single task."""
    if len(set(evaluation.tasks)) < 2:
        return None
    found = bootstrap(getattr(evaluation, metric), evaluation.tasks, seed=seed)
    return [found.low, found.high]


def publish(
    scores: Mapping[str, Any],
    title: str,
    header: Sequence[str],
    groups: Shown,
    remark: str,
    predictions: Sequence[Prediction],
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print scores, as JSON or as a table of groups of rows; before it, write all there is to a folder, if one is
    given."""
    if output is not None:
        write_predictions(output / "predictions.jsonl", predictions)
        write_text(output / "scores.json", json.dumps(scores, indent=2) + "\n")
        write_text(output / "scores.md", document(title, header, groups, remark))
        stderr().print(f"wrote predictions.jsonl, scores.json and scores.md to {output}", soft_wrap=True)
    if as_json:
        print_json(scores)
        return
    made = table(title, header)
    for style, rows in groups:
        for row in rows:
            made.add_row(*row, style=style)
        made.add_section()
    stdout().print(made)


def document(title: str, header: Sequence[str], groups: Shown, remark: str) -> str:
    """The table in markdown."""
    return f"# {title}\n\n{markdown_table(header, [row for _, rows in groups for row in rows])}\n{remark}\n"


def percent(score: float) -> str:
    """A fraction as the field writes it: with one decimal, of a hundred."""
    return f"{100 * score:.1f}"


def with_interval(score: float, ends: Sequence[float] | None) -> str:
    """A score and its interval, where there is one."""
    return percent(score) if ends is None else f"{percent(score)} [{percent(ends[0])}, {percent(ends[1])}]"


def shown(scores: Mapping[str, Any]) -> Shown:
    """The rows of a table: categories, languages, wordings, all, references."""

    def row(name: str, n: int, values: Mapping[str, float]) -> list[str]:
        return [name, f"{n:,}", *(percent(values[metric]) for metric in METRICS)]

    parts: Sequence[Mapping[str, float]] = scores.get("by_wording", ())
    languages: Mapping[str, Mapping[str, float]] = scores["by_language"]
    several = len(languages) > 1
    overall = [with_interval(scores[metric], scores["interval"][metric]) for metric in METRICS]
    return [
        (None, [row(name, group["n"], group) for name, group in scores["by_category"].items()]),
        (None, [row(name, int(group["n"]), group) for name, group in languages.items() if several]),
        (None, [row(f"wording {i}", scores["n"] // len(parts), part) for i, part in enumerate(parts)]),
        ("bold", [["all", f"{scores['n']:,}", *overall]]),
        ("dim", [row(REFERENCES[name], scores["n"], values) for name, values in scores["reference"].items()]),
    ]
