"""The two scores of Super-NaturalInstructions, as Tk-Instruct's `compute_metrics.py` defines them.

Both take one prediction and every accepted answer, keep the best match and return a fraction from 0 to 1;
a benchmark figure is their mean over examples (Wang et al., 2022, section 5.2). Not all languages put spaces between
words, and ROUGE's own words are of ASCII letters only. So in its other track the benchmark compares GPT-2's pieces of
bytes instead, and we those of the bundled model's tokenizer, which is of the same kind and needs no download.
"""

import string
from collections.abc import Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer as RougeTokenizer
from tokenizers import Tokenizer

from tagi import bundled

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(prediction: str, references: Sequence[str], *, pieces: bool = False) -> float:
    """Best ROUGE-L F-measure of `prediction` against the `references` (one or more): of stemmed English words, or of
    `pieces`, as written."""
    scorer = _scorer(pieces)
    return max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised `prediction` equals one of the normalised `references`, else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, references))


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation and collapse white space; articles stay, unlike in SQuAD."""
    return " ".join(text.lower().translate(_DELETE_PUNCTUATION).split())


class Pieces(RougeTokenizer):
    """A byte-level BPE's pieces of a text, without the space that begins one, as in Tk-Instruct's scorer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def tokenize(self, text: str) -> list[str]:
        return [piece.lstrip("Ġ") for piece in self._tokenizer.encode(text, add_special_tokens=False).tokens]


@cache
def _scorer(pieces: bool) -> RougeScorer:
    if not pieces:
        return RougeScorer(["rougeL"], use_stemmer=True)
    tokenizer = Tokenizer.from_file(str(bundled.default_checkpoint() / "tokenizer.json"))
    return RougeScorer(["rougeL"], tokenizer=Pieces(tokenizer))
