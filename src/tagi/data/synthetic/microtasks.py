"""Microtasks: list-and-word tasks in plain English whose instances never run out.

A microtask is one operation, or two in a row, on a list of words. It is worded in many ways and generates its
instances on demand from a seed, so that the whole method can be trained and tested on any machine in minutes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from zlib import crc32

from tagi.data.synthetic.micro_english import CATEGORIES, NUMBERS, SINGULAR, WORDS
from tagi.data.synthetic.micro_ops import OPERATIONS, Operation
from tagi.data.types import Demonstration, Example, Generated, Instruction, Task

EXAMPLES_PER_TASK = 1_000_000
SHORTEST_LIST, LONGEST_LIST = 4, 6
# {X} is the first clause with a capital letter; the last connector is held out of training.
CONNECTORS = (
    "{X}, then {y}.",
    "{X} and then {y}.",
    "First {x}. After that, {y}.",
    "{X}. Next, {y}.",
    "First {x}, and after that {y}.",
)
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MOST_DRAWS = 10_000
_NAMED_COPIES = 4  # makes 44 % of the words come from a category that the task names, or 33 % from each of two
_REPEATED, _SELDOM_REPEATED = 0.35, 0.08
_DEMONSTRATION_SHARE = 16  # one input in so many is set aside for demonstrations


@cache
def word_pool(named: tuple[str, ...], absent: str = "") -> tuple[str, ...]:
    """Words to draw uniformly from: `named` categories are frequent, `absent` does not occur."""
    copies = {category: _NAMED_COPIES if category in named else 1 for category in CATEGORIES}
    return tuple(
        word for category, words in CATEGORIES.items() if category != absent for word in words * copies[category]
    )


def draw_words(rng: Random, pool: Sequence[str], repeated: float) -> list[str]:
    """A list of four to six words; each after the first copies an earlier one with chance `repeated`."""
    words = [pool[int(rng.random() * len(pool))]]
    for _ in range(rng.randint(SHORTEST_LIST, LONGEST_LIST) - 1):
        source = words if rng.random() < repeated else pool
        words.append(source[int(rng.random() * len(source))])
    return words


@dataclass(frozen=True)
class MicroTask:
    """One or two operations in a row and the seed of their instances."""

    number: int
    operations: tuple[Operation, ...]
    seed: int

    @property
    def name(self) -> str:
        """A file name without its ending, e.g. `micro0123_keep_only_animals__reverse`."""
        return f"micro{self.number:04d}_" + "__".join(operation.name for operation in self.operations)

    def solve(self, words: Sequence[str]) -> list[str]:
        """The words of the right answer; empty where one of the steps is undefined."""
        result = list(words)
        for operation in self.operations:
            if not result:
                break
            result = operation.apply(result)
        return result

    def definition(self, wording_seed: int = 0, held_out: bool = False) -> str:
        """The instruction in one of the training wordings, or entirely in held-out phrasings."""
        rng = Random((self.seed << 32) ^ wording_seed)
        return rng.choice(self.definitions(held_out))

    def definitions(self, held_out: bool = False) -> tuple[str, ...]:
        """Every training wording, or the held-out one."""
        first, *rest = (operation.clauses(held_out) for operation in self.operations)
        if not rest:
            return tuple(f"{_capital(clause)}." for clause in first)
        connectors = CONNECTORS[-1:] if held_out else CONNECTORS[:-1]
        return tuple(
            connector.format(X=_capital(x), x=x, y=y) for connector in connectors for x in first for y in rest[0]
        )

    def task(self, wording_seed: int = 0, held_out: bool = False, demonstrations: int = 0) -> Task:
        """The task in one wording, with `demonstrations` demonstrations whose inputs no example has.

        A task in held-out phrasings has `_reworded` at the end of its name. Its category is the family of
        its last operation.
        """
        aside = range(EXAMPLES_PER_TASK, EXAMPLES_PER_TASK + demonstrations)
        shown = tuple(Demonstration(*self._draw(index, for_demonstration=True)) for index in aside)
        told = Instruction(self.definition(wording_seed, held_out), shown)
        examples = Generated(EXAMPLES_PER_TASK, self._example)
        return Task(self.name + ("_reworded" if held_out else ""), told, (self.operations[-1].family,), examples)

    def _example(self, index: int) -> Example:
        text, answer = self._draw(index, for_demonstration=False)
        return Example(f"{self.name}-{index}", text, (answer,))

    def _draw(self, index: int, for_demonstration: bool) -> tuple[str, str]:
        """An input and its answer, functions of the task's seed and the index alone.

        Draws until every step is defined and the input belongs to the asked-for side.
        """
        rng, (pools, repeated) = Random((self.seed << 32) ^ index), self._words
        for _ in range(_MOST_DRAWS):
            words = draw_words(rng, rng.choice(pools), repeated)
            text = " ".join(words)
            aside = crc32(text.encode()) % _DEMONSTRATION_SHARE == 0
            if aside == for_demonstration and (answer := self.solve(words)):
                return text, " ".join(answer)
        raise RuntimeError(f"{self.name}: no input in {_MOST_DRAWS} draws has an answer")

    @cached_property
    def _words(self) -> tuple[tuple[tuple[str, ...], ...], float]:
        """What inputs are drawn from, and how often a word is repeated."""
        last = self.operations[-1]
        named = tuple(sorted({operation.category for operation in self.operations} - {""}))
        pools = (word_pool(named),)
        if last.answers and last.category:  # "no" and "zero" must be right as well
            pools += (word_pool(named, absent=last.category), word_pool(()))
        deduplicates = any(operation.family == "deduplicate" for operation in self.operations)
        return pools, _REPEATED if deduplicates else _SELDOM_REPEATED


@cache
def micro_vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark, in lower case, that an instruction, input or output can contain."""
    texts: list[str] = [*CONNECTORS, *WORDS, *SINGULAR.values(), *NUMBERS, "yes", "no"]
    for operation in OPERATIONS:
        texts += operation.clauses() + operation.clauses(held_out=True)
    tokens = {token for text in texts for token in tokenize(re.sub(r"{\w}", " ", text))}
    return tuple(sorted(tokens))


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _TOKEN.findall(text.lower())


def _capital(clause: str) -> str:
    return clause[0].upper() + clause[1:]
