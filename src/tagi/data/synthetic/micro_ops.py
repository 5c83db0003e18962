"""The operations that microtasks are made of.

An operation maps a list of words to a list of words; an operation that answers (a count, yes or no, one
word) returns a list of one. The empty list means "undefined here", for instance the third of two words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tagi.data.synthetic.micro_english import (
    CATEGORIES,
    CATEGORY_OF,
    INSERTED_WORDS,
    NUMBERS,
    ORDINALS,
    PHRASINGS,
    SINGULAR,
)


class Operation(NamedTuple):
    """One instantiated operation: a family and the arguments that this family takes (the rest empty)."""

    family: str
    category: str = ""
    number: str = ""
    word: str = ""

    @property
    def name(self) -> str:
        """An identifier, e.g. `keep_only_animals`."""
        return "_".join(part for part in self if part)

    @property
    def answers(self) -> bool:
        """Whether the result is an answer, which no further operation may work on."""
        return FAMILIES[self.family].answers

    def apply(self, words: Sequence[str]) -> list[str]:
        """The result for a non-empty list of words; empty where the operation is undefined."""
        return FAMILIES[self.family].apply(list(words), self)

    @property
    def amount(self) -> int:
        """Words that it keeps or drops."""
        return NUMBERS.index(self.number)

    def among(self, words: Sequence[str]) -> list[str]:
        """Those of some words that are of its category."""
        return [word for word in words if CATEGORY_OF.get(word) == self.category]

    def clauses(self, held_out: bool = False) -> tuple[str, ...]:
        """Its wordings as imperative clauses in lower case: those for training, or the held-out one."""
        phrasings = PHRASINGS[self.family]
        chosen = phrasings[-1:] if held_out else phrasings[:-1]
        return tuple(phrasing.format(**self._slots()) for phrasing in chosen)

    def _slots(self) -> dict[str, str]:
        singular = SINGULAR.get(self.category, "")
        count = "word" if self.number == "one" else f"{self.number} words"
        return {
            "plural": self.category,
            "singular": singular,
            "a": f"{'an' if singular[:1] in tuple('aeiou') else 'a'} {singular}",
            "first": f"first {count}",
            "last": f"last {count}",
            "ordinal": self.number,
            "word": self.word,
        }


@dataclass(frozen=True)
class Family:
    """Operations that differ only in their arguments: a category, a number or ordinal, a word to insert."""

    apply: Callable[[list[str], Operation], list[str]]
    categories: tuple[str, ...] = ("",)
    numbers: tuple[str, ...] = ("",)
    words: tuple[str, ...] = ("",)
    answers: bool = False

    def operations(self, name: str) -> list[Operation]:
        """Every operation of the family; no word replaces the words of its own category."""
        return [
            Operation(name, category, number, word)
            for category in self.categories
            for number in self.numbers
            for word in self.words
            if not (category and CATEGORY_OF.get(word) == category)
        ]


_ALL = tuple(CATEGORIES)
_COUNTS = NUMBERS[1:4]

FAMILIES: dict[str, Family] = {
    "reverse": Family(lambda words, _: words[::-1]),
    "sort": Family(lambda words, _: sorted(words)),
    "keep_first": Family(lambda words, one: words[: one.amount], numbers=_COUNTS),
    "keep_last": Family(lambda words, one: words[-one.amount :], numbers=_COUNTS),
    "drop_first": Family(lambda words, one: words[one.amount :], numbers=_COUNTS),
    "drop_last": Family(lambda words, one: words[: -one.amount], numbers=_COUNTS),
    "keep_only": Family(lambda words, one: one.among(words), categories=_ALL),
    "remove": Family(lambda words, one: [word for word in words if not one.among([word])], categories=_ALL),
    "replace": Family(
        lambda words, one: [one.word if one.among([word]) else word for word in words],
        categories=_ALL,
        words=INSERTED_WORDS,
    ),
    "append": Family(lambda words, one: [*words, one.word], words=INSERTED_WORDS),
    "prepend": Family(lambda words, one: [one.word, *words], words=INSERTED_WORDS),
    "swap_ends": Family(lambda words, _: [words[-1], *words[1:-1], words[0]] if len(words) > 1 else words),
    "first_to_end": Family(lambda words, _: [*words[1:], words[0]]),
    "last_to_front": Family(lambda words, _: [words[-1], *words[:-1]]),
    "deduplicate": Family(lambda words, _: list(dict.fromkeys(words))),
    "double": Family(lambda words, _: [word for word in words for _ in range(2)]),
    "every_other": Family(lambda words, _: words[::2]),
    "categorize": Family(lambda words, _: [SINGULAR.get(CATEGORY_OF.get(word, ""), word) for word in words]),
    "count_words": Family(lambda words, _: [NUMBERS[len(words)]], answers=True),
    "count": Family(lambda words, one: [NUMBERS[len(one.among(words))]], categories=_ALL, answers=True),
    "any": Family(lambda words, one: ["yes" if one.among(words) else "no"], categories=_ALL, answers=True),
    "pick": Family(lambda words, one: words[ORDINALS.index(one.number) :][:1], numbers=ORDINALS, answers=True),
    "pick_last": Family(lambda words, _: [words[-1]], answers=True),
}

OPERATIONS = tuple(operation for name, family in FAMILIES.items() for operation in family.operations(name))
