"""The figures of an evaluation, and how they are shown."""

import pytest

from tagi.cli.scores import HEADER, REMARK, by_part, collect, document, shown
from tagi.data.types import Example, Instruction
from tagi.eval.evaluate import Evaluation
from tagi.eval.report import Prediction

ROWS = [("b", ("QA", "Ignored"), 1.0), ("a", ("QA",), 0.0), ("a", ("QA",), 0.5), ("c", (), 0.25)]


@pytest.fixture
def evaluation() -> Evaluation:
    example = Example("1", "in", ("out",))
    predictions = [Prediction(task, categories, Instruction("Do."), example, "out") for task, categories, _ in ROWS]
    return Evaluation(predictions, [value for _, _, value in ROWS], [0.0, 0.0, 1.0, 1.0])


def test_means_weigh_examples_not_tasks_and_a_task_counts_in_its_first_category(evaluation: Evaluation) -> None:
    found = collect(evaluation, {"majority": evaluation})
    assert (found["rouge_l"], found["exact_match"], found["n"]) == (0.4375, 0.5, 4)
    assert list(found["by_task"].items()) == [
        ("a", {"n": 2, "rouge_l": 0.25, "exact_match": 0.5}),
        ("b", {"n": 1, "rouge_l": 1.0, "exact_match": 0.0}),
        ("c", {"n": 1, "rouge_l": 0.25, "exact_match": 1.0}),
    ]
    assert found["by_category"] == {"QA": {"n": 3, "rouge_l": 0.5, "exact_match": 1 / 3}}
    assert found["reference"] == {"majority": {"rouge_l": 0.4375, "exact_match": 0.5}}


def test_parts_and_their_rows_in_a_document(evaluation: Evaluation) -> None:
    parts = by_part(evaluation, 2)
    assert parts == [{"rouge_l": 0.5, "exact_match": 0.0}, {"rouge_l": 0.375, "exact_match": 1.0}]
    scores = collect(evaluation, {"majority": evaluation}) | {"by_wording": parts}
    text = document("title", HEADER, shown(scores), REMARK)
    assert text.startswith(
        "# title\n\n|  | n | ROUGE-L | exact match |\n| --- | ---: | ---: | ---: |\n| QA | 3 | 50.0 | 33.3 |\n"
    )
    assert "| wording 1 | 2 | 37.5 | 100.0 |\n| all | 4 | 43.8 [" in text
    assert "| the task's commonest answer | 4 | 43.8 | 50.0 |\n" in text
