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
        return FAMILIES[self.family].apply(words, self)

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

    apply: Callable[[Sequence[str], Operation], list[str]]
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


def _reverse(words: Sequence[str], _: Operation) -> list[str]:
    return list(words[::-1])


def _sort(words: Sequence[str], _: Operation) -> list[str]:
    return sorted(words)


def _keep_first(words: Sequence[str], operation: Operation) -> list[str]:
    return list(words[: NUMBERS.index(operation.number)])


def _keep_last(words: Sequence[str], operation: Operation) -> list[str]:
    return list(words[-NUMBERS.index(operation.number) :])


def _drop_first(words: Sequence[str], operation: Operation) -> list[str]:
    return list(words[NUMBERS.index(operation.number) :])


def _drop_last(words: Sequence[str], operation: Operation) -> list[str]:
    return list(words[: -NUMBERS.index(operation.number)])


def _keep_only(words: Sequence[str], operation: Operation) -> list[str]:
    return [word for word in words if CATEGORY_OF.get(word) == operation.category]


def _remove(words: Sequence[str], operation: Operation) -> list[str]:
    return [word for word in words if CATEGORY_OF.get(word) != operation.category]


def _replace(words: Sequence[str], operation: Operation) -> list[str]:
    return [operation.word if CATEGORY_OF.get(word) == operation.category else word for word in words]


def _append(words: Sequence[str], operation: Operation) -> list[str]:
    return [*words, operation.word]


def _prepend(words: Sequence[str], operation: Operation) -> list[str]:
    return [operation.word, *words]


def _swap_ends(words: Sequence[str], _: Operation) -> list[str]:
    return [words[-1], *words[1:-1], words[0]] if len(words) > 1 else list(words)


def _first_to_end(words: Sequence[str], _: Operation) -> list[str]:
    return [*words[1:], words[0]]


def _last_to_front(words: Sequence[str], _: Operation) -> list[str]:
    return [words[-1], *words[:-1]]


def _deduplicate(words: Sequence[str], _: Operation) -> list[str]:
    return list(dict.fromkeys(words))


def _double(words: Sequence[str], _: Operation) -> list[str]:
    return [word for word in words for _ in range(2)]


def _every_other(words: Sequence[str], _: Operation) -> list[str]:
    return list(words[::2])


def _categorize(words: Sequence[str], _: Operation) -> list[str]:
    return [SINGULAR[CATEGORY_OF[word]] if word in CATEGORY_OF else word for word in words]


def _count_words(words: Sequence[str], _: Operation) -> list[str]:
    return [NUMBERS[len(words)]]


def _count(words: Sequence[str], operation: Operation) -> list[str]:
    return [NUMBERS[len(_keep_only(words, operation))]]


def _any(words: Sequence[str], operation: Operation) -> list[str]:
    return ["yes" if _keep_only(words, operation) else "no"]


def _pick(words: Sequence[str], operation: Operation) -> list[str]:
    position = ORDINALS.index(operation.number)
    return list(words[position : position + 1])


def _pick_last(words: Sequence[str], _: Operation) -> list[str]:
    return [words[-1]]


_ALL = tuple(CATEGORIES)
_COUNTS = NUMBERS[1:4]

FAMILIES: dict[str, Family] = {
    "reverse": Family(_reverse),
    "sort": Family(_sort),
    "keep_first": Family(_keep_first, numbers=_COUNTS),
    "keep_last": Family(_keep_last, numbers=_COUNTS),
    "drop_first": Family(_drop_first, numbers=_COUNTS),
    "drop_last": Family(_drop_last, numbers=_COUNTS),
    "keep_only": Family(_keep_only, categories=_ALL),
    "remove": Family(_remove, categories=_ALL),
    "replace": Family(_replace, categories=_ALL, words=INSERTED_WORDS),
    "append": Family(_append, words=INSERTED_WORDS),
    "prepend": Family(_prepend, words=INSERTED_WORDS),
    "swap_ends": Family(_swap_ends),
    "first_to_end": Family(_first_to_end),
    "last_to_front": Family(_last_to_front),
    "deduplicate": Family(_deduplicate),
    "double": Family(_double),
    "every_other": Family(_every_other),
    "categorize": Family(_categorize),
    "count_words": Family(_count_words, answers=True),
    "count": Family(_count, categories=_ALL, answers=True),
    "any": Family(_any, categories=_ALL, answers=True),
    "pick": Family(_pick, numbers=ORDINALS, answers=True),
    "pick_last": Family(_pick_last, answers=True),
}

OPERATIONS = tuple(operation for name, family in FAMILIES.items() for operation in family.operations(name))
