"""Microtasks: list-and-word tasks in plain English whose instances never run out.

A microtask is one operation, or two in a row, on a list of words. It is worded in many ways and generates its
instances on demand from a seed, so that the whole method can be trained and tested on any machine in minutes.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import overload
from zlib import crc32

from tagi.data.synthetic.micro_english import CATEGORIES, NUMBERS, SINGULAR, WORDS
from tagi.data.synthetic.micro_ops import OPERATIONS, Operation
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.files import write_text

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
        examples = MicroExamples(self)
        return Task(
            name=self.name + ("_reworded" if held_out else ""),
            instruction=Instruction(self.definition(wording_seed, held_out), examples.demonstrations(demonstrations)),
            categories=(self.operations[-1].family,),
            examples=examples,
        )


class MicroExamples(Sequence[Example]):
    """A microtask's instances, each a function of the task's seed and the index alone."""

    def __init__(self, task: MicroTask) -> None:
        last = task.operations[-1]
        named = tuple(sorted({operation.category for operation in task.operations} - {""}))
        deduplicates = any(operation.family == "deduplicate" for operation in task.operations)
        self._task = task
        self._repeated = _REPEATED if deduplicates else _SELDOM_REPEATED
        self._pools = (word_pool(named),)
        if last.answers and last.category:  # "no" and "zero" must be right as well
            self._pools += (word_pool(named, absent=last.category), word_pool(()))

    def __len__(self) -> int:
        return EXAMPLES_PER_TASK

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        chosen = range(EXAMPLES_PER_TASK)[index]
        return self._example(chosen) if isinstance(chosen, int) else [self._example(i) for i in chosen]

    def demonstrations(self, count: int) -> tuple[Demonstration, ...]:
        """Worked examples; inputs set aside for them never occur among the examples."""
        indices = range(EXAMPLES_PER_TASK, EXAMPLES_PER_TASK + count)
        return tuple(Demonstration(*self._draw(index, for_demonstration=True)) for index in indices)

    def _example(self, index: int) -> Example:
        text, answer = self._draw(index, for_demonstration=False)
        return Example(f"{self._task.name}-{index}", text, (answer,))

    def _draw(self, index: int, for_demonstration: bool) -> tuple[str, str]:
        """Draws until every step is defined and the input belongs to the asked-for side."""
        rng = Random((self._task.seed << 32) ^ index)
        for _ in range(_MOST_DRAWS):
            words = draw_words(rng, rng.choice(self._pools), self._repeated)
            text = " ".join(words)
            if (crc32(text.encode()) % _DEMONSTRATION_SHARE == 0) == for_demonstration:
                answer = self._task.solve(words)
                if answer:
                    return text, " ".join(answer)
        raise RuntimeError(f"{self._task.name}: no input in {_MOST_DRAWS} draws has an answer")


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


def new_phrasings(tasks: Sequence[MicroTask], count: int, seed: int, demonstrations: int = 0) -> list[Task]:
    """`count` of the tasks, drawn without replacement, worded entirely in held-out phrasings."""
    chosen = Random(seed).sample(tasks, count)
    return [task.task(held_out=True, demonstrations=demonstrations) for task in chosen]


def write_sni(folder: Path, train: Iterable[Task], test: Iterable[Task], instances: int = 100) -> None:
    """Writes tasks in the layout of Super-NaturalInstructions: `tasks/` and `splits/default/`.

    Of each task the first `instances` examples are written. A crash leaves no half-written file, and the
    split files, each written after its tasks, name only tasks that are there.

    Raises:
        DiskError: a file could not be written.
    """
    for split, tasks in (("train", train), ("test", test)):
        names = [_write_task(folder / "tasks", task, instances) for task in tasks]
        write_text(folder / "splits" / "default" / f"{split}_tasks.txt", "".join(f"{name}\n" for name in names))


def _write_task(folder: Path, task: Task, instances: int) -> str:
    demonstrations = [
        {"input": positive.input, "output": positive.output, "explanation": ""}
        for positive in task.instruction.demonstrations
    ]
    record = {
        "Categories": list(task.categories),
        "Reasoning": [],
        "Definition": [task.instruction.definition],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Positive Examples": demonstrations,
        "Negative Examples": [],
        "Instances": [
            {"id": example.id, "input": example.input, "output": list(example.targets)}
            for example in task.examples[:instances]
        ],
    }
    write_text(folder / f"{task.name}.json", json.dumps(record, indent=1))
    return task.name


def _capital(clause: str) -> str:
    return clause[0].upper() + clause[1:]
