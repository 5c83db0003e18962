"""What a probe's answers are worth: exact match beside what costs no model."""

from collections.abc import Sequence
from statistics import fmean

from tagi.data.types import Example, Task
from tagi.eval.evaluate import reference_points
from tagi.eval.rouge import normalize_answer
from tagi.pretraining.text_tasks import Probe


def chances(probe: Probe, tasks: Sequence[Task]) -> dict[str, float]:
    """Exact match without reading the instruction, by each way of guessing that suits the probe.

    `copy`: the whole input; some span of the input that has the right number of words. `choose`: some option; the
    task's commonest answer. `yes_no`: the task's commonest answer.
    """
    rows = [example for task in tasks for example in task.examples]
    points = {name: fmean(one.exact_match) for name, one in reference_points(tasks).items()}
    if probe == "copy":
        return {"copy_input": points["copy_input"], "random_span": fmean(map(random_span, rows))}
    if probe == "choose":
        return {"random_option": fmean(1 / len(row.choices) for row in rows), "majority": points["majority"]}
    return {"majority": points["majority"]}


def random_span(example: Example) -> float:
    """Share of the input's spans of the answer's length, in words, that are the answer."""
    words, answer = normalize_answer(example.input).split(), normalize_answer(example.targets[0]).split()
    spans = [words[start : start + len(answer)] for start in range(len(words) - len(answer) + 1)]
    return spans.count(answer) / len(spans) if spans else 0.0
