"""What every kind of text task is made of: the values that its instruction names, its wordings, its rows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from string import Formatter
from typing import Any, Literal, NamedTuple, TypeVar
from zlib import crc32

from tagi.pretraining.passages import Passage, Passages, bare, places

Family = Literal["copy", "extract", "rewrite", "choose", "yes_no"]
LONGEST_ANSWER = 30
"""Words of an answer."""
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
MARKS = {
    "quotation marks": ('"', '"'),
    "square brackets": ("[", "]"),
    "asterisks": ("*", "*"),
    "round brackets": ("(", ")"),
}
_DERIVED = re.compile(r"(?:an|ish|ese|day|ber|uary|ism|ist)$|^(?:March|April|May|June|July|August|French|Dutch|Greek)$")
_HELD_OUT = 5  # one word in so many is named in probes only


@dataclass(frozen=True, slots=True)
class Values:
    """The values that an instruction names; a kind uses some of them."""

    word: str = ""
    other: str = ""
    name: str = ""
    key: str = ""
    mark: str = ""
    letter: str = ""
    count: int = 0
    nth: int = 0
    place: str = ""
    length: int = 0
    sentences: int = 0
    options: int = 0
    layout: str = ""
    negated: bool = False

    @property
    def spoken(self) -> dict[str, str]:
        """As they stand in an instruction."""
        told = {name: str(value) for name, value in asdict(self).items()}
        number = f"{COUNT_WORDS[self.sentences]} sentence" + ("s" if self.sentences > 1 else "")
        return told | {"count": COUNT_WORDS[self.count], "nth": ORDINALS[self.nth], "sentences": number}


class Pool(NamedTuple):
    """Values that training instructions may name, and those that only probes name."""

    seen: Sequence[Any]
    new: Sequence[Any] = ()


POOLS: dict[str, Pool] = {
    "name": Pool(
        (
            *("Maria", "Tom", "Ahmed", "Lucy", "Peter", "Anna", "Carlos", "Nina"),
            *("George", "Helen", "Oscar", "Ruth", "Victor"),
        ),
        ("Sofia", "Daniel", "Amir", "Clara"),
    ),
    "key": Pool(
        ("Name", "Place", "Date", "Title", "Author", "Topic", "Price", "Colour", "Team", "Subject"),
        ("City", "Product", "Animal"),
    ),
    "mark": Pool(("quotation marks", "square brackets", "asterisks"), ("round brackets",)),
    "letter": Pool(tuple("abdefghilnoprstw"), tuple("cmk")),
    "count": Pool((2, 3, 4, 5, 7, 8), (6,)),
    "nth": Pool((0, 1, 2, 4), (3,)),
    "place": Pool(("first", "second", "last"), ("third",)),
    "length": Pool(tuple(n for n in range(9, 32) if n % 5), (10, 15, 20, 25)),
    "sentences": Pool((1, 2, 3)),
    "options": Pool((2, 3, 4)),
    "layout": Pool(("list", "lettered", "letters")),
    "negated": Pool((False, True)),
}
"""Every value but words, which come from the documents."""


class Unsuited(Exception):
    """This draw gives no row."""


def need(condition: object) -> None:
    """Give the draw up unless the condition holds."""
    if not condition:
        raise Unsuited


class Row(NamedTuple):
    """An input with its answer; `choices` where the answer is one of a few."""

    input: str
    answer: str
    run: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """One attempt to draw a row. Rows with the numbers 0, 1, 2, … have all answers equally often: `want` is the number.

    Every method raises `Unsuited` where the attempt fails.
    """

    passages: Passages
    rng: Random
    values: Values
    want: int = 0

    def passage(self, least: int = 1, most: int = 1) -> Passage:
        """Some passage of so many sentences."""
        return self._around(self.rng.randrange(len(self.passages.sentences)), least, most)

    def one_of(self, sentences: Sequence[int], least: int = 1, most: int = 1) -> Passage:
        """A passage with one of some sentences in it."""
        need(sentences)
        return self._around(self.rng.choice(sentences), least, most)

    def with_word(self, least: int = 1, most: int = 1) -> Passage:
        """A passage with the named word in it."""
        return self.one_of(self.passages.by_word.get(self.values.word, ()), least, most)

    def starting(self, sentences: Sequence[int], least: int = 1, most: int = 1) -> Passage:
        """A passage that begins with one of some sentences."""
        need(sentences)
        return self._cut(self.rng.choice(sentences), 0, self.rng.randint(least, most))

    def ending(self, sentences: Sequence[int], least: int = 1, most: int = 1) -> Passage:
        """A passage that ends with one of some sentences."""
        need(sentences)
        count = self.rng.randint(least, most)
        return self._cut(self.rng.choice(sentences), count - 1, count)

    def words(self, count: int, *others: str) -> list[str]:
        """Different plain words, other than some."""
        drawn = dict.fromkeys(self.passages.some_word(self.rng) for _ in range(2 * count))
        found = [word for word in drawn if word not in others][:count]
        need(len(found) == count)
        return found

    def _around(self, sentence: int, least: int, most: int) -> Passage:
        count = self.rng.randint(least, most)
        return self._cut(sentence, self.rng.randrange(count), count)

    def _cut(self, sentence: int, before: int, count: int) -> Passage:
        passage = self.passages.around(sentence, before, count)
        if passage is None:
            raise Unsuited
        return passage


def answered(passage: Passage, answer: str, text: str = "") -> Row:
    """A row whose input is the passage, or a text made of it; no answer is empty, long or half a quotation."""
    need(answer and answer.count(" ") < LONGEST_ANSWER)
    need(answer.count('"') % 2 == 0 and answer.count("(") == answer.count(")"))
    return Row(text or passage.text, answer, passage.run)


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks that differ only in the values that their instructions name.

    Every clause is said in each of the family's `TEMPLATES`.
    """

    name: str
    family: Family
    clauses: tuple[str, ...]
    row: Callable[[Draw], Row]
    uses: tuple[str, ...]
    """Names of the values; the others stay at their defaults."""
    negated: tuple[str, ...] = ()
    """The clauses where `negated` is drawn."""

    @property
    def has_new(self) -> bool:
        """Whether an instruction can name values that no training instruction names."""
        return any(use in ("word", "other") or POOLS[use].new for use in self.uses)

    def values(self, passages: Passages, rng: Random, *, new: bool = False) -> Values:
        """Values for one task: those of training, or wherever there are any, those of probes only."""
        return Values(**{use: _value(use, passages, rng, new) for use in self.uses})

    def wordings(self, values: Values) -> list[str]:
        """Every wording of one task."""
        clauses = self.negated if values.negated else self.clauses
        told = values.spoken
        said = [_said(template, clause.format(**told)) for template in TEMPLATES[self.family] for clause in clauses]
        if values.layout != "letters":
            return said
        quoted = [f'"{letter}"' for letter in LETTERS[: values.options]]
        tails = [tail.format(letters=listed(quoted)) for tail in BY_LETTER]
        return [f"{one} {tail}" for one in said for tail in tails]


Drawn = TypeVar("Drawn", bound=Callable[[Draw], Row])


class Kinds(list[Kind]):
    """Kinds of tasks, in order."""

    def add(
        self,
        family: Family,
        *clauses: str,
        name: str = "",
        also: tuple[str, ...] = (),
        negated: tuple[str, ...] = (),
    ) -> Callable[[Drawn], Drawn]:
        """Decorates what draws the rows of a kind; `also` are values that it uses beside those that clauses name."""
        named = dict.fromkeys(field for clause in clauses for _, field, _, _ in Formatter().parse(clause) if field)

        def added(row: Drawn) -> Drawn:
            self.append(Kind(name or row.__name__.lstrip("_"), family, clauses, row, (*named, *also), negated))
            return row

        return added


LETTERS = "ABCD"
BY_LETTER = (
    "Answer with its letter.",
    "Answer with {letters}.",
    "Write only the letter of the option, not the option itself.",
    "The output should be {letters}.",
)
"""How an instruction asks for the letter of an option."""


def listed(options: Sequence[str]) -> str:
    """a, b or c"""
    return f"{', '.join(options[:-1])} or {options[-1]}"


TEMPLATES: dict[Family, tuple[str, ...]] = {
    "copy": ("Write {clause}.", "Copy {clause}.", "Answer with {clause}.", "Give {clause} and nothing else."),
    "extract": ("Write {clause}.", "Find {clause}.", "Answer with {clause}.", "Your answer is {clause}."),
    "rewrite": ("{clause}.", "Read the text and {clause}.", "{clause}, and change nothing else."),
    "choose": ("Choose the option that {clause}.", "Which of the options {clause}?", "Pick the one that {clause}."),
    "yes_no": (
        "Answer yes if the text {clause}, and no otherwise.",
        "If it is true that the text {clause}, write yes; if not, write no.",
        "Say yes or no: the text {clause}.",
        "Yes or no? The text {clause}.",
    ),
}


def is_new(word: str) -> bool:
    """Whether a word is named in probes only."""
    return crc32(word.encode()) % _HELD_OUT == 0


def once(words: Sequence[str], word: str) -> int:
    """Where a word stands that stands there once."""
    found = places(words, word)
    need(len(found) == 1)
    return found[0]


def inner_names(passage: Passage) -> list[str]:
    """Capitalised words that do not begin a sentence, without punctuation; no nationalities, days or months."""
    inside = [bare(word) for sentence in passage.sentences for word in sentence.split()[1:]]
    return [
        word for word in inside if len(word) > 1 and word.istitle() and word.isalpha() and not _DERIVED.search(word)
    ]


def one_name(draw: Draw) -> tuple[Passage, str]:
    """A passage and the only word in it with a capital letter, but for words that begin a sentence and are no names:
    somewhere in the documents they stand in lower case."""
    passage = draw.passage(1, 2)
    begin = [bare(sentence.split()[0]).lower() for sentence in passage.sentences]
    need(all(word in draw.passages.by_word for word in begin))
    names = inner_names(passage)
    need(len(names) == 1 and sum(word != word.lower() for word in passage.words) == len(begin) + 1)
    return passage, names[0]


def _value(use: str, passages: Passages, rng: Random, new: bool) -> Any:
    if use in ("word", "other"):
        while is_new(word := passages.some_word(rng)) != new:
            pass
        return word
    pool = POOLS[use]
    return rng.choice(pool.new if new and pool.new else pool.seen)


def _said(template: str, clause: str) -> str:
    said = template.format(clause=clause)
    return said[0].upper() + said[1:]
