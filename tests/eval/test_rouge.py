import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoTokenizer

from tagi import bundled
from tagi.eval.rouge import exact_match, rouge_l

STEMMER = PorterStemmer()
TEXT = st.lists(
    st.sampled_from(["the", "running", "Runs", "dog's", "dogs", "42", "a-b", "ponies", "Über", "..."]),
    max_size=8,
).map(" ".join)


def restated_tokens(text: str) -> list[str]:
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [STEMMER.stem(word) if len(word) > 3 else word for word in words]


def restated_lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return restated_lcs(a[:-1], b[:-1]) + 1
    return max(restated_lcs(a[:-1], b), restated_lcs(a, b[:-1]))


def restated_rouge_l(prediction: str, reference: str) -> float:
    """Lin (2004), equations 2 to 4 with beta = 1."""
    p, r = restated_tokens(prediction), restated_tokens(reference)
    lcs = restated_lcs(p, r)
    return 2 * lcs / (len(p) + len(r)) if lcs else 0.0


def restated_normalize(text: str) -> str:
    kept = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(kept.split())


@given(prediction=TEXT, reference=TEXT)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(prediction: str, reference: str) -> None:
    expected = restated_rouge_l(prediction, reference)
    assert rouge_l(prediction, [reference]) == pytest.approx(expected, abs=1e-15)  # worst 1.1e-16


@given(prediction=st.text(), references=st.lists(st.text(), min_size=1, max_size=3))
def test_rouge_l_equals_the_best_of_rouge_score(prediction: str, references: list[str]) -> None:
    scores = [
        RougeScorer(["rougeL"], use_stemmer=True).score(target=reference, prediction=prediction)["rougeL"].fmeasure
        for reference in references
    ]
    assert rouge_l(prediction, references) == max(scores)


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", ["a dog", "the cat slept"]) == pytest.approx(2 / 3)
    assert rouge_l("running dogs", ["runs dog"]) == 1.0
    assert rouge_l("", ["cat"]) == 0.0


@pytest.fixture(scope="module")
def of_the_other_track() -> RougeScorer:
    """The benchmark's scorer of its other track, restated on `transformers`, with the bundled vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.default_checkpoint())

    class Pieces:
        def tokenize(self, text: str) -> list[str]:
            return [piece.lstrip("Ġ") for piece in tokenizer.tokenize(text)]

    return RougeScorer(["rougeL"], tokenizer=Pieces())


WORLD = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["Genève", "上海", "в городе", "नीली", "ثلاثة", " ", "city", "C'est", "42"])).map("".join),
)


@given(prediction=WORLD, references=st.lists(WORLD, min_size=1, max_size=3))
def test_rouge_l_of_pieces_equals_the_best_of_rouge_score(
    prediction: str, references: list[str], of_the_other_track: RougeScorer
) -> None:
    scores = [of_the_other_track.score(target=one, prediction=prediction)["rougeL"].fmeasure for one in references]
    assert rouge_l(prediction, references, pieces=True) == max(scores)


@pytest.mark.parametrize("text", ["上海", "नीली", "ثلاثة", "Москва", "うどん"])
def test_only_pieces_score_languages_without_ascii_letters(text: str) -> None:
    assert (rouge_l(text, [text]), rouge_l(text, [text], pieces=True)) == (0.0, 1.0)
    assert rouge_l(text, ["Genève"], pieces=True) < 0.4


def test_rouge_l_of_pieces_by_hand() -> None:
    assert rouge_l("à Genève", ["Genève"], pieces=True) > 0.7  # the space that begins a word does not count
    assert rouge_l("Geneva", ["geneva"]) > rouge_l("Geneva", ["geneva"], pieces=True)  # as written, as there


@given(prediction=st.text(), references=st.lists(st.text(), min_size=1, max_size=3))
def test_exact_match_is_the_benchmarks(prediction: str, references: list[str]) -> None:
    expected = any(restated_normalize(prediction) == restated_normalize(reference) for reference in references)
    assert exact_match(prediction, references) == float(expected)


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("The  CAT!\n", ["the cat"], 1.0),
        ("cat", ["the cat"], 0.0),
        ("dont", ["do not", "don't"], 1.0),
        ("well known", ["well-known"], 0.0),
        ("“cat”", ["cat"], 0.0),
        ("?", ["!"], 1.0),
    ],
)
def test_exact_match_by_hand(prediction: str, references: list[str], score: float) -> None:
    assert exact_match(prediction, references) == score


@pytest.mark.parametrize("metric", [rouge_l, exact_match])
def test_fractions(metric: Callable[[str, list[str]], float]) -> None:
    assert metric("red wolf", ["red wolf"]) == 1.0
    assert metric("red wolf", ["blue fox"]) == 0.0


def copy_input(task: dict[str, Any], instance: dict[str, Any]) -> str:
    return instance["input"]


def copy_first_demonstration(task: dict[str, Any], instance: dict[str, Any]) -> str:
    return task["Positive Examples"][0]["output"]


@pytest.mark.parametrize(("baseline", "rouge"), [(copy_input, 25.7), (copy_first_demonstration, 9.5)])
def test_reference_points_on_the_unseen_tasks(
    baseline: Callable[[dict[str, Any], dict[str, Any]], str], rouge: float, shared_data: Path
) -> None:
    scores = []
    for name in (shared_data / "sni/splits/default/test_tasks.txt").read_text().split():
        task = json.loads((shared_data / f"sni/tasks/{name}.json").read_text(encoding="utf-8"))
        for instance in task["Instances"][:100]:
            scores.append(rouge_l(baseline(task, instance), instance["output"]))
    assert len(scores) == 1700
    assert round(100 * sum(scores) / len(scores), 1) == rouge
