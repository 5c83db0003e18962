"""`tagi eval probes`: three probes under three instructions, as JSON and as a table."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rich.table import Table

from tagi.cli.common import bar, table
from tagi.cli.scores import interval, made_by, percent
from tagi.data.sources.base import grouped
from tagi.eval.evaluate import Evaluation, InstructionControl, evaluate
from tagi.infer.engine import Tagi
from tagi.pretraining.probes import chances
from tagi.pretraining.text_tasks import Probe, ProbeTasks

CONTROLS: dict[InstructionControl, str] = {"aligned": "right", "shuffled": "another's", "empty": "none"}
TITLES: dict[Probe, str] = {"copy": "copy a span", "choose": "choose", "yes_no": "yes or no"}
HEADER = ("", "n", *CONTROLS.values(), "chance", "seen", "new")


def score(tagi: Tagi, drawn: Mapping[Probe, ProbeTasks], seed: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure, as fractions; `exact_match` is the mean over the probes."""
    found = {name: _probe(tagi, name, tasks, seed) for name, tasks in drawn.items()}
    return {
        "exact_match": fmean(one["exact_match"]["aligned"] for one in found.values()),
        "chance": fmean(one["chance"] for one in found.values()),
        "n": sum(one["n"] for one in found.values()),
        "probes": found,
        "command": {**asked, **made_by(tagi)},
    }


def score_table(scores: Mapping[str, Any]) -> Table:
    """The scores for a terminal; the last columns are the right instruction's, by the values that it names."""
    command = scores["command"]
    shown = table(f"probes, exact match by instruction, {command['method']}", HEADER)
    for name, title in TITLES.items():
        one = scores["probes"][name]
        values = [*(one["exact_match"][control] for control in CONTROLS), one["chance"], *one["by_values"].values()]
        shown.add_row(title, f"{one['n']:,}", *map(percent, values))
    return shown


def _probe(tagi: Tagi, name: Probe, tasks: ProbeTasks, seed: int) -> dict[str, Any]:
    """One probe; its chance is the best way to guess."""
    found: dict[InstructionControl, Evaluation] = {}
    for control, said in CONTROLS.items():
        with bar(f"{TITLES[name]}, {said}") as report:
            found[control] = evaluate(tagi, tasks.every, instruction=control, seed=seed, progress=report)
    guesses = chances(name, tasks.every)
    rows = sum(len(task.examples) for task in tasks.seen)
    each = found["aligned"].exact_match
    by_kind = grouped(zip(found["aligned"].predictions, each, strict=True), lambda one: one[0].categories[0])
    return {
        "n": len(each),
        "exact_match": {control: fmean(one.exact_match) for control, one in found.items()},
        "interval": interval(found["aligned"], "exact_match", seed),
        "chance": max(guesses.values()),
        "guesses": guesses,
        "by_values": {"seen": fmean(each[:rows]), "new": fmean(each[rows:])},
        "by_kind": {kind: fmean(value for _, value in own) for kind, own in by_kind.items()},
    }
