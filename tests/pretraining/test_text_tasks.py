"""Tasks over text: every answer is right by the instruction's own words, answers are balanced, probes are apart."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

from tagi.config import DataConfig
from tagi.data.mixture import TaskSource
from tagi.data.synthetic.micro_english import WORDS
from tagi.data.types import Example, Task
from tagi.errors import DataError
from tagi.pretraining.passages import FEWEST_SENTENCES, Passages, bare
from tagi.pretraining.text_kinds import POOLS, Family, is_new
from tagi.pretraining.text_tasks import (
    KINDS,
    PROBES,
    TEXT_TASKS,
    Text,
    TextTask,
    probes,
    text_task,
    text_tasks,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
MARKED = {
    "quotation marks": r'"([^"]*)"',
    "square brackets": r"\[([^]]*)\]",
    "asterisks": r"\*([^*]*)\*",
    "round brackets": r"\(([^)]*)\)",
}
NOUNS = sorted(WORDS)
VERBS = ["watched", "painted", "carried", "followed", "visited", "remembered"]
NAMES = ["Paula", "Henry", "Tonga", "Karla", "Boris", "Emma", "Oslo", "Kenya", "Felix", "Marco"]
TAILS = (
    "near the {a}",
    "behind every {a}, before the {b} moved",
    "with {n} other things",
    "and told {name} about it",
    "as {name} said to {name}",
)


def made_text(rng: Random) -> str:
    """A document of plain sentences, with numbers, names, commas and questions."""

    def sentence() -> str:
        a, b, c = rng.sample(NOUNS, 3)
        tail = rng.choice(TAILS).format(a=a, b=b, n=rng.randint(2, 900), name=rng.choice(NAMES))
        start = rng.choice(("The", "A", "Every", "Most", "Clearly the", "Kind of a", "Because the", "In the"))
        end = rng.choice(("", "", f" while the {b} slept", f" until it became a much larger {c} than before"))
        ask = f"Why did the {c} leave?" if rng.random() < 0.2 else None
        return ask or f"{start} {a} {rng.choice(VERBS)} the {c} {tail}{end}."

    return (
        " ".join(sentence() for _ in range(rng.randint(2, 8))) + " The " + rng.choice(NOUNS) + " was in the end of a."
    )


def write_c4(folder: Path, documents: int = 400) -> Path:
    for number, part in enumerate(("train", "validation")):
        rng = Random(number)
        lines = (json.dumps({"text": made_text(rng)}) + "\n" for _ in range(documents))
        (folder / f"c4-{part}.00000-of-00001.json").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def c4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_c4(tmp_path_factory.mktemp("c4"))


def tasks_of(folder: Path, **data: Any) -> TaskSource:
    return Text(DataConfig(source="text", path=str(folder), **data)).train(0)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Passages:
    return Passages.read(shared_data / "c4", "train", 3_000)


def words(text: str) -> list[str]:
    """Words without the punctuation around them, found by another way than in the code under test."""
    return [re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$", "", word) for word in text.split()]


def sentences(task: TextTask, text: str) -> list[str]:
    """The passage's sentences, looked up among all of them."""
    found, rest = [], text
    while rest:
        every = task.passages.sentences
        starts = {every[i] for i in _by_opening(task.passages)[rest[:12]]}
        fits = [one for one in starts if rest == one or rest.startswith(f"{one} ")]
        assert fits
        found.append(max(fits, key=len))
        rest = rest[len(found[-1]) :].strip()
    return found


def mended(task: TextTask, tries: Iterable[list[str]]) -> str:
    """The one of some texts that stands in the documents."""
    (found,) = {one for one in map(" ".join, tries) if one in _lookup(task.passages, "every")}
    return found


def undoubled(text: str) -> str:
    """A text with every word once that stands there twice in a row."""
    return re.sub(r"(?<!\S)(\S+) \1(?!\S)", r"\1", text)


def shortened(text: str) -> list[list[str]]:
    """A text without one of its words, for each of them."""
    every = text.split()
    return [every[:i] + every[i + 1 :] for i in range(len(every))]


def swapped(text: str) -> list[list[str]]:
    """A text with two neighbouring words in the other order, for each such pair."""
    every = text.split()
    return [every[:i] + every[i : i + 2][::-1] + every[i + 2 :] for i in range(len(every) - 1)]


def stands(task: TextTask, text: str) -> bool:
    """Whether a passage of up to three sentences stands in the documents."""
    every = task.passages.sentences
    starts = _by_opening(task.passages).get(text[:12], ())
    return any(" ".join(every[i : i + count]) == text for i in starts for count in (1, 2, 3))


def _lookup(passages: Passages, by: str) -> dict[str, str]:
    """Passages of one or two sentences as they are, by their lower case, or by their longer words and names."""
    if (id(passages), by) not in _LOOKUPS:
        every = [*passages.sentences, *map(" ".join, pairwise(passages.sentences))]
        of = {"every": str, "lower": str.lower, "telling": telling}[by]
        _LOOKUPS[id(passages), by] = {of(one): one for one in every}
    return _LOOKUPS[id(passages), by]


def telling(text: str) -> str:
    return ", ".join(word for word in words(text) if len(word) > 3 or not word.islower())


_LOOKUPS: dict[tuple[int, str], dict[str, str]] = {}
_OPENINGS: dict[int, dict[str, list[int]]] = {}


def _by_opening(passages: Passages) -> dict[str, list[int]]:
    if id(passages) not in _OPENINGS:
        table: dict[str, list[int]] = {}
        for i, sentence in enumerate(passages.sentences):
            table.setdefault(sentence[:12], []).append(i)
        _OPENINGS[id(passages)] = table
    return _OPENINGS[id(passages)]


def options(text: str) -> list[str]:
    """What is offered, without its letters."""
    offered = text.partition("Options: ")[2]
    if offered.startswith("(A) "):
        return [one.strip() for one in re.split(r"\([A-D]\) ", offered)[1:]]
    return re.split(r", | or ", offered)


def right(task: TextTask, told: str, text: str) -> str:  # noqa: C901
    """The answer, from the instruction's wording and the input alone."""
    quoted = re.findall(r'"([^"]*)"', told)
    named = quoted[0] if quoted else ""
    all_words, lower = words(text), [word.lower() for word in words(text)]
    counts = [NUMBERS.index(word) for word in words(told) if word in NUMBERS]
    places = [{"last": -1}.get(word, ORDINALS.index(word) if word in ORDINALS else 0) for word in words(told)
              if word in (*ORDINALS, "last")]  # fmt: skip
    match task.kind.name:
        case "first_words":
            return " ".join(text.split()[: counts[0]])
        case "last_words":
            return " ".join(text.split()[-counts[0] :])
        case "nth_word":
            return all_words[places[0]]
        case "last_word":
            return all_words[-1]
        case "sentence":
            return sentences(task, text)[places[0]]
        case "sentence_with" | "holds_word":
            among = sentences(task, text) if task.kind.name == "sentence_with" else options(text)
            (found,) = [one for one in among if named in [word.lower() for word in words(one)]]
            return found
        case "shortest_sentence":
            return min(sentences(task, text), key=lambda one: one.count(" "))
        case "question":
            return next(one for one in sentences(task, text) if one[-1] == "?")
        case "after":
            return re.split(rf"(?i)(?<![\w'-]){named}(?![\w']|-\w)\S*\s", text)[1]
        case "before":
            return re.split(rf"(?i)\s\S?(?<![\w'-]){named}(?![\w']|-\w)", text)[0]
        case "between_marks":
            (pattern,) = [pattern for mark, pattern in MARKED.items() if mark in told]
            (found,) = re.findall(pattern, text)
            return found
        case "word_after":
            return all_words[lower.index(named) + 1]
        case "word_before":
            return all_words[lower.index(named) - 1]
        case "number":
            (found,) = re.findall(r"\d[\d.,]*\d|\d", text)
            return found
        case "name" | "rename":
            inside = [word for one in sentences(task, text) for word in words(one)[1:]]
            (found,) = [word for word in inside if word != word.lower()]
            if task.kind.name == "name":
                return found
            (new,) = [word for word in words(told) if word in (*POOLS["name"].seen, *POOLS["name"].new)]
            return re.sub(rf"\b{found}\b", new, text)
        case "with_initial":
            (found,) = [word for word in all_words if word.lower().startswith(named)]
            return found
        case "longest_word":
            return max(all_words, key=len)
        case "blank_name" | "blank_word":
            (found,) = {one for one in all_words if one and stands(task, text.replace("_", one))}
            return found
        case "field":
            keys = [key for pool in POOLS["key"] for key in pool if key in words(told.replace(":", " "))]
            return dict(one.split(": ", 1) for one in text.split("; "))[keys[0]]
        case "repeat" | "repeat_question":
            return text
        case "lower_case":
            return text.lower()
        case "replace":
            old, new = quoted[::-1] if "in place of" in told else quoted
            return re.sub(rf"(?<![\w'-]){old}(?![\w'-])", new, text)
        case "remove":
            return re.sub(rf"(?<!\S){named} ", "", text + " ").strip()
        case "without_first_words":
            return " ".join(text.split()[counts[0] :])
        case "without_sentence":
            kept = sentences(task, text)
            kept.pop(places[0])
            return " ".join(kept)
        case "other_order":
            first, second = sentences(task, text)
            return f"{second} {first}"
        case "add_word":
            return f"{text} {named}"
        case "question_answer" | "answer_question":
            question, answer = re.fullmatch(r"Question: (.*) Answer: (.*)", text).groups()  # type: ignore[union-attr]
            return f"{question} {answer}" if task.kind.name == "question_answer" else f"{answer} {question}"
        case "undoubled":
            return undoubled(text)
        case "without_stranger":
            return mended(task, shortened(text))
        case "swapped_back":
            return mended(task, swapped(text))
        case "capitals":
            return _lookup(task.passages, "lower")[text]
        case "mended_question":
            whole = _lookup(task.passages, "lower").get(text, "")
            return mended(task, [*shortened(text), *swapped(text), undoubled(text).split(), whole.split()])
        case "sentence_of":
            return _lookup(task.passages, "telling")[text]
    return chosen(task, told, text, named, places) if task.kind.family == "choose" else verdict(task, told, text, named)


def chosen(task: TextTask, told: str, text: str, named: str, places: list[int]) -> str:  # noqa: C901
    """The option that the rule singles out; fails where it is not a single one."""
    offered, about = (
        options(text),
        [word.lower() for word in words(text.removeprefix("Text: ").partition(" Options: ")[0])],
    )
    match task.kind.name:
        case "longest":
            found = [one for one in offered if len(one) == max(map(len, offered))]
        case "shortest":
            found = [one for one in offered if len(one) == min(map(len, offered))]
        case "first_in_alphabet":
            found = sorted(offered)[:1]
        case "last_in_alphabet":
            found = sorted(offered)[-1:]
        case "begins_with":
            found = [one for one in offered if one[0] == named]
        case "ends_with":
            found = [one for one in offered if one[-1] == named]
        case "has_letter":
            found = [one for one in offered if named in one]
        case "is_number":
            found = [one for one in offered if one.isdigit()]
        case "is_name":
            found = [one for one in offered if one[0].isupper()]
        case "in_text":
            found = [one for one in offered if one in about]
        case "not_in_text":
            found = [one for one in offered if one not in about]
        case "follows":
            found = [about[about.index(named) + 1]]
        case "continues":
            before = text.removeprefix("Text: ").partition(" Options: ")[0]
            found = [one for one in offered if stands(task, f"{before} {one}")]
        case "asks":
            found = [one for one in offered if one.endswith("?")]
        case "nth_option":
            found = [offered[places[0]]]
        case other:
            raise AssertionError(other)
    (one,) = found
    return one


def verdict(task: TextTask, told: str, text: str, named: str) -> str:
    held = [word.lower() for word in words(text)]
    said = re.sub(r'"[^"]*"|, and no otherwise|, write yes; if not, write no', "", told)
    negative = re.search(r"\bnot\b|without|no more than|at most|contains no|other|more or less|fewer|shorter", said)
    number = next((int(one) for one in re.findall(r"\d+", told)), 0)
    match task.kind.name:
        case "has_word":
            holds = named in held
        case "has_number":
            holds = re.search(r"\d", text) is not None
        case "is_long":
            holds = len(text.split()) > number
        case "begins":
            holds = words(text)[0][0].lower() == named
        case "has_sentences":
            holds = len(sentences(task, text)) == next(NUMBERS.index(w) for w in words(told) if w in NUMBERS)
        case "ends_in_question":
            holds = text.endswith("?")
        case "falls":
            first, second = sentences(task, text)
            holds = first.count(" ") > second.count(" ")
        case "has_comma":
            holds = "," in text
        case other:
            raise AssertionError(other)
    return "yes" if holds != (negative is not None) else "no"


def plain(text: str) -> str:
    return text.strip(" ,;:").rstrip()


def check(made: TextTask, told: str, row: Example) -> None:
    expected = right(made, told, row.input)
    if re.search(r'its letter|the letter of|"A"', told):
        expected = "ABCD"[options(row.input).index(expected)]
    assert plain(row.targets[0]) == plain(expected), (told, row)
    assert not row.choices or row.targets[0] in row.choices


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_answer_is_right_by_the_instruction(kind, new: bool, real: Passages) -> None:  # noqa: ANN001
    for number in range(6):
        made = text_task(real, number, kind, 3, new=new)
        for wording in range(3):
            task = made.task(wording=wording)
            for index in range(8 * wording, 8 * wording + 8):
                check(made, task.instruction.definition, task.examples[index])


def test_a_wrong_answer_would_be_found(real: Passages) -> None:
    """The independent check of the test above is not empty: another row's answer fails it."""
    for kind in KINDS:
        made = text_task(real, 1, kind, 0)
        task = made.task()
        rows = task.examples[:12]
        wrong = next((one.targets for one in rows if one.targets != rows[0].targets), None)
        assert wrong is not None, kind.name
        with pytest.raises(AssertionError):
            check(made, task.instruction.definition, Example("", rows[0].input, wrong, rows[0].choices))


def test_every_kind_has_tasks_over_plain_documents(c4: Path) -> None:
    source = tasks_of(c4, seed=1)
    drawn = [source.task(number, 0) for number in range(len(KINDS))]
    assert {task.categories[0] for task in drawn} == {kind.name for kind in KINDS}
    assert {kind.family for kind in KINDS} == set(get_args(Family))
    assert len(source) == TEXT_TASKS


def test_answers_are_balanced(c4: Path) -> None:
    passages = Passages.read(c4, "train")
    for number, kind in enumerate(KINDS):
        if kind.family not in ("choose", "yes_no") or kind.name == "nth_option":
            continue
        rows = text_task(passages, number, kind, 0).task().examples[:12]
        places = Counter(row.choices.index(row.targets[0]) for row in rows)
        assert len(rows[0].choices) == len(places), kind.name
        assert set(places.values()) == {12 // len(places)}, kind.name


def test_tasks_are_functions_of_seed_and_numbers(c4: Path) -> None:
    def seen(source: TaskSource, order: list[int]) -> dict[int, tuple[str, str, list[Example]]]:
        tasks = {number: source.task(number, 3) for number in order}
        return {n: (t.name, t.instruction.definition, [t.examples[i] for i in (9, 2)]) for n, t in tasks.items()}

    first = seen(tasks_of(c4, seed=1), [0, 7, 200])
    assert seen(text_tasks(Passages.read(c4, "train"), 1), [200, 7, 0]) == first
    assert seen(tasks_of(c4, seed=2), [0, 7, 200]) != first


def test_visits_reword_a_task_and_leave_its_values(c4: Path) -> None:
    source = tasks_of(c4, seed=1)
    worded = {source.task(9, visit).instruction.definition for visit in range(40)}
    assert len(worded) > 3
    quoted = {tuple(re.findall(r'"([^"]*)"', one)) for one in worded}
    assert len(quoted) == 1
    assert len({row.input for row in source.task(9, 0).examples[:50]}) > 25


def test_demonstrations_have_sentences_of_their_own(c4: Path) -> None:
    passages = Passages.read(c4, "train")
    aside = {s for s, run in zip(passages.sentences, passages.runs, strict=True) if run % 16 == 0}
    rest = {s for s, run in zip(passages.sentences, passages.runs, strict=True) if run % 16}
    task = text_task(passages, 0, next(kind for kind in KINDS if kind.name == "repeat"), 0).task(demonstrations=3)
    assert len(task.instruction.demonstrations) == 3
    assert all(any(s in shown.input for s in aside) for shown in task.instruction.demonstrations)
    assert all(any(s in row.input for s in rest) for row in task.examples[:50])


def told(task: Task) -> str:
    """The instruction without the letters of options that it may ask for."""
    return re.sub(r'"[A-D]"', "", task.instruction.definition)


def named_values(tasks: tuple[Task, ...]) -> set[str]:
    """Longer words that the instructions of some tasks put in quotation marks."""
    quoted = [word for task in tasks for word in re.findall(r'"([^":]{2,})"', told(task))]
    return set(quoted)


def test_probes_come_from_other_documents_and_name_new_values(c4: Path) -> None:
    found = probes(c4, seed=0, tasks=20, instances=12)
    assert list(found) == list(PROBES)
    train, valid = (set(Passages.read(c4, part).sentences) for part in ("train", "validation"))
    for probe in found.values():
        assert (len(probe.seen), len(probe.new)) == (20, 20)
        assert len({task.name for task in probe.every}) == 40
        assert not any(map(is_new, named_values(probe.seen)))
        assert all(map(is_new, named_values(probe.new)))
    copied = [
        row.targets[0] for task in found["copy"].every if task.categories == ("sentence",) for row in task.examples
    ]
    assert copied and set(copied) <= valid
    assert not set(copied) <= train


def test_training_names_no_value_that_is_kept_for_probes(c4: Path) -> None:
    source = tasks_of(c4, seed=0)
    told = [source.task(number, 0) for number in range(400)]
    assert named_values(tuple(told)) and not any(map(is_new, named_values(tuple(told))))
    text = " ".join(task.instruction.definition for task in told)
    kept = ["round brackets", "six words", "fourth word", "third sentence", *POOLS["name"].new]
    assert [one for one in kept if one in text] == []


def test_valid_tasks_are_no_training_tasks(c4: Path) -> None:
    held_out = Text(DataConfig(source="text", path=str(c4), valid_tasks=12, valid_instances=3)).valid(0)
    trained = {tasks_of(c4, seed=0).task(number, 0).name for number in range(100)}
    assert len(held_out) == 12 and not {task.name for task in held_out} & trained
    assert all(len(task.examples) == 3 for task in held_out)


def test_a_passage_is_plain_sentences_of_one_document() -> None:
    text = 'He met Dr. Brown in Feb. 1999 there. "It was late," he said. A piece\nPassage: The next line is (a) whole.'
    found = Passages.of([text, "Another document begins with this sentence."])
    assert list(found.sentences) == [
        "He met Dr. Brown in Feb. 1999 there.",
        '"It was late," he said.',
        "The next line is (a) whole.",
        "Another document begins with this sentence.",
    ]
    assert found.runs[0] == found.runs[1] and len(set(found.runs)) == 3
    assert found.around(1, 1, 2) is not None
    assert found.around(2, 1, 2) is None
    assert bare("(late),") == "late"


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', '{"text": "Only one sentence is in here."}\n'])
def test_empty_documents_are_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "c4-train.00000-of-00001.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"text: holds [01] usable English sentences"):
        tasks_of(tmp_path, seed=0)
    assert FEWEST_SENTENCES > 1


def test_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: holds no c4-validation"):
        probes(tmp_path / "nowhere", seed=0)
