"""The scores of an evaluation as one JSON object, and that object as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

import tagi as package
from tagi.cli.common import table
from tagi.eval.evaluate import Evaluation
from tagi.eval.report import Interval, ScoredExample, Summary, bootstrap, markdown_table, summarise

if TYPE_CHECKING:
    from tagi.infer.engine import Tagi

METRICS = {"rouge_l": "ROUGE-L", "exact_match": "exact match"}
HEADER = ("", "n", *METRICS.values())
REFERENCES = {
    "copy_input": "copying the input",
    "copy_demonstration": "copying the first demonstration",
    "majority": "the task's commonest answer",
}


def made_by(tagi: Tagi) -> dict[str, str]:
    """Which model of which version an evaluation is of."""
    return {"method": tagi.config.method, "fingerprint": tagi.fingerprint(), "version": package.__version__}


def collect(evaluation: Evaluation, reference: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Every figure of an evaluation; all scores are fractions, intervals are 95 % bootstrap over tasks."""
    summaries = {metric: _summarise(evaluation, metric) for metric in METRICS}
    return {
        "exact_match": summaries["exact_match"].overall.value,
        "rouge_l": summaries["rouge_l"].overall.value,
        "n": len(evaluation.predictions),
        "interval": {metric: interval(evaluation, metric) for metric in METRICS},
        "by_category": _groups({metric: one.by_category for metric, one in summaries.items()}),
        "by_task": _groups({metric: one.by_task for metric, one in summaries.items()}),
        "reference": {
            name: {metric: _summarise(one, metric).overall.value for metric in METRICS}
            for name, one in reference.items()
        },
    }


def by_part(evaluation: Evaluation, parts: int) -> list[dict[str, float]]:
    """Means of so many equal parts of an evaluation, in their order."""
    each = len(evaluation.predictions) // parts
    means = {metric: getattr(evaluation, metric) for metric in METRICS}
    return [
        {metric: sum(values[part * each : (part + 1) * each]) / each for metric, values in means.items()}
        for part in range(parts)
    ]


def interval(evaluation: Evaluation, metric: str, seed: int = 0) -> list[float] | None:
    """Low and high end of a metric's 95 % interval; None where there is a single task."""
    if len(set(evaluation.tasks)) < 2:
        return None
    found: Interval = bootstrap(getattr(evaluation, metric), evaluation.tasks, seed=seed)
    return [found.low, found.high]


def score_table(scores: Mapping[str, Any], title: str) -> Table:
    """The scores for a terminal."""
    shown = table(title, HEADER)
    groups = _category_rows(scores), _wording_rows(scores), [_overall_row(scores)], _reference_rows(scores)
    for group, style in zip(groups, (None, None, "bold", "dim"), strict=True):
        for row in group:
            shown.add_row(*row, style=style)
        shown.add_section()
    return shown


def markdown(scores: Mapping[str, Any], title: str) -> str:
    """The scores for a document."""
    rows = [*_category_rows(scores), *_wording_rows(scores), _overall_row(scores), *_reference_rows(scores)]
    said = "Scores are percentages, in brackets the 95 % bootstrap interval over tasks."
    return f"# {title}\n\n{markdown_table(HEADER, rows)}\n{said}\n"


def percent(score: float) -> str:
    """A fraction as the field writes it: with one decimal, of a hundred."""
    return f"{100 * score:.1f}"


def with_interval(score: float, ends: Sequence[float] | None) -> str:
    """A score and its interval, where there is one."""
    return percent(score) if ends is None else f"{percent(score)} [{percent(ends[0])}, {percent(ends[1])}]"


def _summarise(evaluation: Evaluation, metric: str) -> Summary:
    values: Sequence[float] = getattr(evaluation, metric)
    pairs = zip(evaluation.predictions, values, strict=True)
    return summarise([ScoredExample(one.task, one.categories, value) for one, value in pairs])


def _groups(means: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {"n": mean.n} | {metric: means[metric][name].value for metric in METRICS}
        for name, mean in means["rouge_l"].items()
    }


def _category_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, f"{group['n']:,}", *(percent(group[metric]) for metric in METRICS)]
        for name, group in scores["by_category"].items()
    ]


def _wording_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    parts: Sequence[Mapping[str, float]] = scores.get("by_wording", ())
    return [
        [f"wording {number}", f"{scores['n'] // len(parts):,}", *(percent(part[metric]) for metric in METRICS)]
        for number, part in enumerate(parts)
    ]


def _overall_row(scores: Mapping[str, Any]) -> list[str]:
    cells = [with_interval(scores[metric], scores["interval"][metric]) for metric in METRICS]
    return ["all", f"{scores['n']:,}", *cells]


def _reference_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    return [
        [REFERENCES[name], f"{scores['n']:,}", *(percent(values[metric]) for metric in METRICS)]
        for name, values in scores["reference"].items()
    ]
