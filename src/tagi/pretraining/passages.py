"""Short English passages: documents cut into sentences once, with an index of what each sentence holds."""

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from string import punctuation
from typing import Literal

from tagi.data.sources.c4 import documents, list_files
from tagi.errors import DataError

SHORTEST, LONGEST = 4, 32
"""Words of a sentence."""
LONGEST_PASSAGE = 60
"""Words of a passage."""
FEWEST_SENTENCES = 100
"""A folder with fewer is refused."""
RARE, COMMON = 10, 0.1
"""A word that an instruction names occurs in so many sentences at least, and in no more than this share of them."""

_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\xa0": " "})
_BREAK = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z0-9])""")
_LABEL = re.compile(r"^(?:[A-Za-z]+ ?\d*: ?)+(?=[A-Z\"'(])")  # "Sentence2: He ...", "Passage: The ..."
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Mt|Ft|Jr|Sr|vs|Prof|Gen|Sen|Rep|Rev|Gov|Capt|Lt|Sgt|Col|No|Inc|Co|Corp|Ltd|etc|ca"
    r"|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)|\b[A-Za-z])\.$"
)
_SENTENCE = re.compile(r"""["'(]?[A-Z][A-Za-z0-9 ,.;:!?'"()$%&-]*[.!?]["')]?""")
_SPACED = re.compile(r"\s[,.;:!?%]|\( | \)|\.\.")  # text that was tokenized, and trailing dots


@dataclass(frozen=True)
class Passage:
    """Sentences that follow each other in a document."""

    sentences: Sequence[str]
    run: int

    @cached_property
    def text(self) -> str:
        """The passage as one line."""
        return " ".join(self.sentences)

    @cached_property
    def words(self) -> list[str]:
        """Its words with the punctuation that they carry."""
        return self.text.split()


def bare(word: str) -> str:
    """A word without the punctuation around it."""
    return word.strip(punctuation)


def places(words: Sequence[str], word: str) -> list[int]:
    """Where a lower-case word stands, in whatever case."""
    return [place for place, one in enumerate(words) if bare(one).lower() == word]


@dataclass(frozen=True)
class Passages:
    """Sentences in the order of their documents; those of one `run` follow each other in the text.

    `by_word` gives the sentences that hold a word as it is written, without punctuation around it.
    """

    sentences: Sequence[str]
    runs: Sequence[int]
    by_word: Mapping[str, Sequence[int]]
    origin: Path = Path("texts")
    """What errors name."""

    @staticmethod
    def read(folder: Path, part: Literal["train", "validation"], limit: int | None = None) -> "Passages":
        """The first `limit` documents of one part of a folder in C4's format; a DataError where they say too little."""
        found = Passages.of(islice(documents(list_files(folder, part)), limit), folder)
        if len(found.sentences) < FEWEST_SENTENCES or not found.nameable:
            held = f"{len(found.sentences)} usable English sentences and {len(found.nameable)} words to name"
            raise DataError(folder, "text", f"holds {held} in c4-{part} files, too few for tasks")
        return found

    @staticmethod
    def of(texts: Iterable[str], origin: Path = Path("texts")) -> "Passages":
        """Cut texts into sentences; what is no plain sentence of 4 to 32 words ends a run and is left out."""
        sentences, runs = list[str](), array("i")
        by_word: defaultdict[str, array[int]] = defaultdict(lambda: array("i"))
        for run, sentence in _runs(texts):
            for word in dict.fromkeys(map(bare, sentence.split())):
                by_word[word].append(len(sentences))
            sentences.append(sentence)
            runs.append(run)
        return Passages(sentences, runs, dict(by_word), origin)

    @cached_property
    def nameable(self) -> tuple[str, ...]:
        """The lower-case words that an instruction may name: not too rare, not too common."""
        most = COMMON * len(self.sentences)
        words = sorted(word for word, where in self.by_word.items() if RARE <= len(where) <= most)
        return tuple(word for word in words if len(word) > 2 and word.isalpha() and word.islower())

    @cached_property
    def with_number(self) -> Sequence[int]:
        """The sentences that hold a digit."""
        return array("i", (i for i, text in enumerate(self.sentences) if any(map(str.isdigit, text))))

    @cached_property
    def questions(self) -> Sequence[int]:
        """The sentences that end in a question mark."""
        return array("i", (i for i, text in enumerate(self.sentences) if text.endswith("?")))

    @cached_property
    def by_initial(self) -> Mapping[str, Sequence[int]]:
        """The sentences by the lower-case letter that they begin with."""
        found: defaultdict[str, array[int]] = defaultdict(lambda: array("i"))
        for i, text in enumerate(self.sentences):
            found[bare(text)[0].lower()].append(i)
        return dict(found)

    def around(self, sentence: int, before: int, count: int) -> Passage | None:
        """`count` sentences of one run, of which one comes after `before` others; None where there are not so many
        or they are too long together."""
        start, end = sentence - before, sentence - before + count
        if start < 0 or end > len(self.runs) or self.runs[start] != self.runs[end - 1]:
            return None
        passage = Passage(self.sentences[start:end], self.runs[start])
        return passage if len(passage.words) <= LONGEST_PASSAGE else None

    def some_word(self, rng: Random) -> str:
        """A nameable word."""
        return self.nameable[int(rng.random() * len(self.nameable))]


def _runs(texts: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Usable sentences and the numbers of their runs."""
    run = 0
    for text in texts:
        for line in text.translate(_PLAIN).splitlines():
            for sentence in _sentences(" ".join(line.split())):
                if _usable(sentence):
                    yield run, sentence
                else:
                    run += 1
            run += 1


def _sentences(line: str) -> Iterator[str]:
    """The sentences of a line, labels before them left out."""
    held = ""
    for piece in _BREAK.split(line):
        held = f"{held} {piece}" if held else piece
        if not _ABBREVIATED.search(held[-6:]):
            yield _LABEL.sub("", held)
            held = ""
    if held:
        yield held


def _usable(sentence: str) -> bool:
    return (
        SHORTEST <= sentence.count(" ") + 1 <= LONGEST
        and _SENTENCE.fullmatch(sentence) is not None
        and _SPACED.search(sentence) is None
        and sentence.count('"') % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and all(map(bare, sentence.split()))
    )
