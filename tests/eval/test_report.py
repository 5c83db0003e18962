import itertools
import json
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from malformed import refusal
from tagi.data.languages import Languages
from tagi.data.types import Demonstration, Example, Instruction
from tagi.errors import DataError
from tagi.eval.report import (
    Interval,
    Prediction,
    bootstrap,
    markdown_table,
    read_predictions,
    verdict,
    write_predictions,
)
from tagi.files import DiskError

PREDICTION = Prediction(
    task="task033_winogrande",
    categories=("Coreference Resolution",),
    instruction=Instruction("Fill the blank.", (Demonstration("The _ ran.", "dog"),)),
    example=Example("task033-1", "The _ fell.\n", ("unicycle", "the unicycle")),
    text="mat",
    languages=Languages(("English",), ("French", "German")),
)

# --- predictions.jsonl ------------------------------------------------------------------------------------

predictions = st.builds(
    Prediction,
    task=st.text(),
    categories=st.lists(st.text(), max_size=2).map(tuple),
    instruction=st.builds(
        Instruction,
        definition=st.text(),
        demonstrations=st.lists(st.builds(Demonstration, st.text(), st.text()), max_size=2).map(tuple),
    ),
    example=st.builds(
        Example, id=st.text(), input=st.text(), targets=st.lists(st.text(), min_size=1, max_size=2).map(tuple)
    ),
    text=st.text(),
    languages=st.builds(Languages, *[st.lists(st.text(), max_size=2).map(tuple)] * 3),
)


@given(records=st.lists(predictions, max_size=3))
def test_predictions_survive_the_disk(records: list[Prediction], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    write_predictions(path, records)
    assert read_predictions(path) == records


def test_a_line_has_the_fields_of_tk_instruct(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [PREDICTION])
    assert json.loads(path.read_text()) == {
        "id": "task033-1",
        "Task": "task033_winogrande",
        "Categories": ["Coreference Resolution"],
        "Definition": ["Fill the blank."],
        "Positive Examples": [{"input": "The _ ran.", "output": "dog"}],
        "Input_language": ["English"],
        "Output_language": ["French", "German"],
        "Instruction_language": [],
        "Instance": {"id": "task033-1", "input": "The _ fell.\n", "output": ["unicycle", "the unicycle"]},
        "Prediction": "mat",
    }


def test_fields_that_only_tk_instruct_writes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [PREDICTION])
    line = json.loads(path.read_text())
    line["Positive Examples"][0]["explanation"] = "Dogs run."
    path.write_text(json.dumps({**line, "Contributors": ["A"], "Negative Examples": [], "Domains": ["B"]}) + "\n")
    assert read_predictions(path) == [PREDICTION]


def failing_stream() -> Iterator[Prediction]:
    yield PREDICTION
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, failing_stream())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["predictions.jsonl"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(DiskError, match=r"a_file/predictions\.jsonl: "):
        write_predictions(tmp_path / "a_file" / "predictions.jsonl", [PREDICTION])


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_predictions(tmp_path / "none.jsonl")


def second_line_with(tmp_path: Path, change: dict[str, Any]) -> Path:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [PREDICTION])
    good = path.read_text()
    path.write_text(good + json.dumps({**json.loads(good), **change}) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Task": 33}, "line 2, Task"),
        ({"Prediction": None}, "line 2, Prediction"),
        ({"Categories": "QA"}, "line 2, Categories"),
        ({"Definition": []}, "line 2, Definition"),
        ({"Positive Examples": [{"input": "a"}]}, "line 2, Positive Examples[0].output"),
        ({"Instance": {"id": "1", "input": "a", "output": []}}, "line 2, Instance.output"),
        ({"Instance": {"id": "1", "input": "a", "output": ["b", 2]}}, "line 2, Instance.output[1]"),
        ({"Instance": {"id": "1", "output": ["b"]}}, "line 2, Instance.input"),
    ],
)
def test_a_malformed_field_is_named(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = second_line_with(tmp_path, change)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert (caught.value.path, caught.value.field) == (path, field)


@given(line=st.binary(min_size=1))
def test_bytes_that_are_no_prediction_are_refused(line: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    path.write_bytes(line)
    read: list[Prediction] = []
    said = refusal(lambda: read.extend(read_predictions(path)))
    assert said.startswith(f"{path}: ") or (read, said) == ([], ""), "blank lines hold nothing"


# --- intervals --------------------------------------------------------------------------------------------

VALUES = [1.0, 0.0, 0.5, 0.25, 0.25, 0.75, 1.0, 1.0, 0.0]
CLUSTERS = ["a", "a", "b", "c", "c", "c", "d", "d", "d"]


def all_resample_means(values: list[float], clusters: list[str]) -> list[float]:
    """The exact bootstrap distribution: every ordered draw of whole clusters is equally likely."""
    groups = [[v for v, c in zip(values, clusters, strict=True) if c == name] for name in sorted(set(clusters))]
    draws = itertools.product(groups, repeat=len(groups))
    return [float(np.mean(list(itertools.chain(*draw)))) for draw in draws]


def test_bootstrap_equals_enumeration_of_every_resample() -> None:
    exact = all_resample_means(VALUES, CLUSTERS)
    interval = bootstrap(VALUES, CLUSTERS, samples=200_000, seed=0)
    # here and below, abs=1e-12: worst 5.6e-17
    assert interval.mean == pytest.approx(np.mean(VALUES), abs=1e-12)
    low, high = np.percentile(exact, [2.5, 97.5], method="inverted_cdf")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_the_bootstrap_of_differences_equals_enumeration_of_every_resample() -> None:
    other = VALUES[::-1]
    exact = np.subtract(all_resample_means(VALUES, CLUSTERS), all_resample_means(other, CLUSTERS))
    interval = bootstrap(np.subtract(VALUES, other), CLUSTERS, samples=200_000, seed=0)
    low, high = np.percentile(exact, [2.5, 97.5], method="inverted_cdf")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_order_of_examples_does_not_matter() -> None:
    order = np.random.default_rng(1).permutation(len(VALUES))
    shuffled = bootstrap(np.array(VALUES)[order], [CLUSTERS[i] for i in order], seed=3)
    straight = bootstrap(VALUES, CLUSTERS, seed=3)
    assert (shuffled.low, shuffled.high) == pytest.approx((straight.low, straight.high), abs=1e-12)


def test_same_seed_same_interval_other_seed_another() -> None:
    values = np.random.default_rng(0).random(40)
    clusters = [string.ascii_letters[i // 4] for i in range(40)]
    assert bootstrap(values, clusters, seed=1) == bootstrap(values, clusters, seed=1)
    assert bootstrap(values, clusters, seed=1) != bootstrap(values, clusters, seed=2)


def simulated(rng: np.random.Generator) -> tuple[NDArray[np.float64], list[str]]:
    """40 tasks of 2 to 8 examples whose scores share their task's effect; the true mean is 0."""
    sizes = rng.integers(2, 9, size=40)
    tasks = np.repeat(np.arange(40), sizes)
    effects = rng.normal(size=40)
    return effects[tasks] + rng.normal(scale=0.5, size=len(tasks)), [f"task{i}" for i in tasks]


def test_interval_covers_the_truth_only_when_tasks_are_the_clusters() -> None:
    rng = np.random.default_rng(7)
    by_task = by_example = 0
    for seed in range(400):
        values, tasks = simulated(rng)
        clustered = bootstrap(values, tasks, samples=500, seed=seed)
        naive = bootstrap(values, [str(i) for i in range(len(values))], samples=500, seed=seed)
        by_task += clustered.low <= 0 <= clustered.high
        by_example += naive.low <= 0 <= naive.high
    assert 0.90 < by_task / 400 < 0.98  # 0.923 measured; 0.95 is promised, with a standard error of 0.011
    assert by_example / 400 < 0.75  # 0.595 measured


def test_more_seeds_of_the_same_tasks_do_not_pass_for_more_tasks() -> None:
    one = bootstrap(VALUES, CLUSTERS, seed=0)
    three = bootstrap(VALUES * 3, CLUSTERS * 3, seed=0)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one value for each example: "):
        bootstrap([1.0, 2.0], ["a", "b", "c"], seed=0)


def test_one_cluster_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two clusters, not 1"):
        bootstrap([0.0, 1.0], ["a", "a"], seed=0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "better"),
        (-0.3, -0.1, "worse"),
        (-0.1, 0.1, "unresolved"),
        (0.0, 0.2, "unresolved"),
        (-0.2, 0.0, "unresolved"),
    ],
)
def test_verdict(low: float, high: float, expected: str) -> None:
    assert verdict(Interval(0.0, low, high)) == expected


# --- tables -----------------------------------------------------------------------------------------------


def test_markdown_table() -> None:
    table = markdown_table(["category", "ROUGE-L", "n"], [["a|b", "25.7", "100"], ["two\nlines", "9.5", "7"]])
    assert table == (
        "| category | ROUGE-L | n |\n| --- | ---: | ---: |\n| a\\|b | 25.7 | 100 |\n| two lines | 9.5 | 7 |\n"
    )
