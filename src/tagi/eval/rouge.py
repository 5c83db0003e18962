"""The two scores of Super-NaturalInstructions, as Tk-Instruct's `compute_metrics.py` defines them.

Both take one prediction and every accepted answer, keep the best match and return a fraction from 0 to 1;
a benchmark figure is their mean over examples (Wang et al., 2022, section 5.2). English tracks only: the
cross-lingual track replaces the tokenizer.
"""

import string
from collections.abc import Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Best ROUGE-L F-measure of `prediction` against the `references` (one or more), words stemmed."""
    return max(_scorer().score(reference, prediction)["rougeL"].fmeasure for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised `prediction` equals one of the normalised `references`, else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, references))


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation and collapse white space; articles stay, unlike in SQuAD."""
    return " ".join(text.lower().translate(_DELETE_PUNCTUATION).split())


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
