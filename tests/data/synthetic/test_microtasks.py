"""Microtasks: what every operation does, how it is worded, and that the splits are honest."""

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sni_folders import write_sni
from tagi.config import DataConfig
from tagi.data.sources.micro import Micro
from tagi.data.sources.sni_files import load_task
from tagi.data.synthetic.micro_english import CATEGORIES, PHRASINGS, WORDS
from tagi.data.synthetic.micro_ops import FAMILIES, OPERATIONS, Operation
from tagi.data.synthetic.micro_splits import (
    PROBES,
    SAME,
    SHOWN_TASK,
    Split,
    agreement,
    probes,
    shuffled_partner,
    signature,
    splits,
)
from tagi.data.synthetic.microtasks import (
    CONNECTORS,
    MicroTask,
    draw_words,
    micro_vocabulary,
    tokenize,
    word_pool,
)
from tagi.errors import ConfigError

EXPECTED = [
    (Operation("reverse"), "red wolf saw dog", "dog saw wolf red"),
    (Operation("sort"), "wolf dog saw red", "dog red saw wolf"),
    (Operation("keep_first", number="one"), "wolf dog saw red", "wolf"),
    (Operation("keep_first", number="three"), "wolf dog", "wolf dog"),
    (Operation("keep_last", number="two"), "wolf dog saw red", "saw red"),
    (Operation("keep_last", number="three"), "wolf dog", "wolf dog"),
    (Operation("drop_first", number="three"), "wolf dog saw red", "red"),
    (Operation("drop_first", number="two"), "wolf dog", ""),
    (Operation("drop_last", number="one"), "wolf dog saw red", "wolf dog saw"),
    (Operation("drop_last", number="three"), "wolf dog", ""),
    (Operation("keep_only", "animals"), "red wolf saw dog plum", "wolf dog"),
    (Operation("keep_only", "jobs"), "red wolf", ""),
    (Operation("remove", "animals"), "red wolf saw dog plum", "red saw plum"),
    (Operation("replace", "animals", word="plum"), "red wolf saw dog", "red plum saw plum"),
    (Operation("append", word="wolf"), "red saw", "red saw wolf"),
    (Operation("prepend", word="wolf"), "red saw", "wolf red saw"),
    (Operation("swap_ends"), "red wolf saw dog", "dog wolf saw red"),
    (Operation("swap_ends"), "red", "red"),
    (Operation("first_to_end"), "red wolf saw dog", "wolf saw dog red"),
    (Operation("last_to_front"), "red wolf saw dog", "dog red wolf saw"),
    (Operation("deduplicate"), "red wolf red saw wolf", "red wolf saw"),
    (Operation("double"), "red wolf", "red red wolf wolf"),
    (Operation("every_other"), "red wolf saw dog plum", "red saw plum"),
    (Operation("categorize"), "red wolf saw peru", "color animal tool country"),
    (Operation("count_words"), "red wolf saw dog plum", "five"),
    (Operation("count", "animals"), "red wolf saw dog plum", "two"),
    (Operation("count", "jobs"), "red wolf", "zero"),
    (Operation("any", "tools"), "red wolf saw", "yes"),
    (Operation("any", "jobs"), "red wolf saw", "no"),
    (Operation("pick", number="second"), "red wolf saw", "wolf"),
    (Operation("pick", number="third"), "red wolf", ""),
    (Operation("pick_last"), "red wolf saw", "saw"),
]


@pytest.fixture(scope="module")
def split() -> Split:
    return splits(seed=7, train_compositions=1000, valid=40, test=150)


def signatures(tasks: tuple[MicroTask, ...]) -> np.ndarray:
    return np.stack([signature([task.solve(words) for words in probes()]) for task in tasks])


def microtask(*operations: Operation) -> MicroTask:
    return MicroTask(0, operations, seed=3)


@pytest.mark.parametrize(("operation", "words", "result"), EXPECTED, ids=lambda value: str(value))
def test_operation_gives_the_expected_words(operation: Operation, words: str, result: str) -> None:
    assert " ".join(operation.apply(words.split())) == result


def test_every_family_has_an_expected_result() -> None:
    assert {operation.family for operation, _, _ in EXPECTED} == set(FAMILIES) == set(PHRASINGS)
    assert len(FAMILIES) >= 22


def test_categories_share_no_word() -> None:
    assert [len(words) for words in CATEGORIES.values()] == [8] * 6
    assert len(set(WORDS)) == 48
    assert {"red", "wolf", "saw", "dog", "plum"} < set(WORDS)


def test_composition_is_solved_step_by_step() -> None:
    assert microtask(*SHOWN_TASK).solve(["red", "wolf", "saw", "dog", "plum"]) == ["dog", "wolf"]
    assert microtask(Operation("keep_only", "jobs"), Operation("count_words")).solve(["red", "wolf"]) == []


def test_no_two_operations_share_a_wording() -> None:
    clauses = [
        clause for operation in OPERATIONS for held_out in (False, True) for clause in operation.clauses(held_out)
    ]
    assert len(set(clauses)) == len(clauses) == 4 * len(OPERATIONS)


def test_wordings_are_english_sentences() -> None:
    definitions = microtask(*SHOWN_TASK).definitions()
    assert "Keep only the animals, then reverse the list." in definitions
    assert "First drop everything that is not an animal. After that, reverse the list." in definitions
    assert len(set(definitions)) == 3 * 3 * 4
    assert microtask(Operation("drop_last", number="one")).definitions()[0] == "Drop the last word."
    assert microtask(Operation("drop_last", number="two")).definitions()[0] == "Drop the last two words."
    assert "Remove every word that is not a country." in microtask(Operation("keep_only", "countries")).definitions()


def test_held_out_wordings_are_new_but_use_known_words() -> None:
    for operation in OPERATIONS:
        assert not set(operation.clauses(held_out=True)) & set(operation.clauses())
    assert microtask(*SHOWN_TASK).definitions(held_out=True) == (
        "First delete all words except the animals, and after that put the list in reverse order.",
    )
    trained = {token for op in OPERATIONS for clause in op.clauses() for token in tokenize(clause)}
    trained |= {token for connector in CONNECTORS[:-1] for token in tokenize(connector)}
    held_out = {token for op in OPERATIONS for clause in op.clauses(held_out=True) for token in tokenize(clause)}
    held_out |= set(tokenize(CONNECTORS[-1]))
    assert held_out <= trained


def test_wording_seeds_reach_every_training_wording() -> None:
    shown = microtask(*SHOWN_TASK)
    assert {shown.definition(seed) for seed in range(500)} == set(shown.definitions())
    assert shown.definition(5) == shown.definition(5)


def test_vocabulary_is_closed(split: Split) -> None:
    vocabulary = set(micro_vocabulary())
    assert list(micro_vocabulary()) == sorted(vocabulary)
    for microtask in (*split.train, *split.valid, *split.test):
        for held_out in (False, True):
            task = microtask.task(microtask.number, held_out, demonstrations=2)
            texts = [task.instruction.definition]
            texts += [
                text for positive in task.instruction.demonstrations for text in (positive.input, positive.output)
            ]
            texts += [text for example in task.examples[:3] for text in (example.input, *example.targets)]
            assert {token for text in texts for token in tokenize(text)} <= vocabulary


def test_examples_are_right_and_never_empty(split: Split) -> None:
    for microtask in split.train:
        for example in microtask.task().examples[500:505]:
            words = example.input.split(" ")
            assert 4 <= len(words) <= 8 and set(words) <= set(WORDS)
            assert example.targets == (" ".join(microtask.solve(words)),) != ("",)


def test_examples_are_a_function_of_seed_and_index() -> None:
    shown = microtask(*SHOWN_TASK)
    examples, again = shown.task().examples, shown.task(wording_seed=9, demonstrations=2).examples
    assert len(examples) == 1_000_000
    assert examples[123_456] == again[123_456]
    assert examples[-1] == examples[999_999]
    assert examples[:3] == [examples[0], examples[1], examples[2]]
    assert examples[0].id == "micro0000_keep_only_animals__reverse-0"
    assert examples[0].input != MicroTask(0, SHOWN_TASK, seed=4).task().examples[0].input
    with pytest.raises(IndexError):
        examples[1_000_000]


def test_examples_hardly_ever_repeat(split: Split) -> None:
    for microtask in split.test[:10]:
        assert len({example.input for example in microtask.task().examples[:2000]}) >= 1995


def test_demonstrations_are_right_and_disjoint_from_examples(split: Split) -> None:
    for microtask in split.test[:10]:
        task = microtask.task(demonstrations=2)
        assert len(task.instruction.demonstrations) == 2
        for positive in task.instruction.demonstrations:
            assert positive.output == " ".join(microtask.solve(positive.input.split()))
        inputs = {example.input for example in task.examples[:2000]}
        assert not inputs & {positive.input for positive in task.instruction.demonstrations}


def test_named_categories_are_frequent_and_repeats_occur() -> None:
    examples = microtask(*SHOWN_TASK).task().examples[:500]
    words = [word for example in examples for word in example.input.split()]
    assert 0.3 <= sum(word in CATEGORIES["animals"] for word in words) / len(words) <= 0.5  # 0.475 measured
    inputs = [example.input.split() for example in microtask(Operation("deduplicate")).task().examples[:500]]
    assert sum(len(set(words)) < len(words) for words in inputs) > 350  # 418 measured


@pytest.mark.parametrize("family", ["any", "count"])
def test_no_answer_dominates_a_question_about_a_category(family: str) -> None:
    examples = microtask(Operation(family, "animals")).task().examples[:500]
    answers = [example.targets[0] for example in examples]
    assert max(answers.count(answer) for answer in set(answers)) <= 0.7 * len(answers)  # worst 0.50


def test_absent_category_is_never_drawn() -> None:
    pool = word_pool(("animals",), absent="tools")
    assert not set(pool) & set(CATEGORIES["tools"])
    assert set(draw_words(Random(0), ("saw",), repeated=0.0)) == {"saw"}


def test_split_is_deterministic_and_seeds_differ(split: Split) -> None:
    assert splits(seed=7, train_compositions=1000, valid=40, test=150) == split
    other = splits(seed=8, train_compositions=20, valid=5, test=20)
    assert {task.operations for task in other.test} != {task.operations for task in split.test[:20]}


def test_split_has_the_sizes_asked_for_and_unique_names(split: Split) -> None:
    assert (len(split.compositions), len(split.valid), len(split.test)) == (1000, 40, 150)
    assert tuple(task.operations[0] for task in split.singles) == OPERATIONS
    names = [task.name for task in (*split.train, *split.valid, *split.test)]
    assert len(set(names)) == len(names)
    assert split.test[0].name == "micro0000_keep_only_animals__reverse"


def test_no_held_out_task_is_a_training_task_in_disguise(split: Split) -> None:
    train = signatures(split.train)
    identity = signature(probes())[None]
    held_out = signatures((*split.test, *split.valid))
    for index, row in enumerate(held_out):
        others = np.delete(held_out, index, axis=0)
        assert max(agreement(row, table).max() for table in (train, identity, others)) < SAME


def test_no_test_task_equals_its_nearest_training_tasks_on_its_own_inputs(split: Split) -> None:
    train = signatures(split.train)
    for task, row in zip(split.test, signatures(split.test), strict=True):
        examples = task.task().examples[:200]
        for index in np.argsort(agreement(row, train))[-3:]:
            answers = [" ".join(split.train[index].solve(example.input.split())) for example in examples]
            same = [answer == example.targets[0] for answer, example in zip(answers, examples, strict=True) if answer]
            assert sum(same) < SAME * PROBES


def test_agreement_counts_the_probes_that_both_define() -> None:
    row = np.array([1, 2, 3, 0])
    table = np.array([[1, 2, 3, 4], [1, 0, 9, 0], [0, 0, 0, 5]])
    assert agreement(row, table).tolist() == [1.0, 0.5, 0.0]


def test_equal_tasks_in_other_words_are_found_equal() -> None:
    pairs = [
        (SHOWN_TASK, SHOWN_TASK[::-1]),
        (
            (Operation("reverse"), Operation("reverse")),
            (Operation("first_to_end"), Operation("last_to_front")),
        ),
        ((Operation("keep_only", "animals"), Operation("count_words")), (Operation("count", "animals"),)),
    ]
    for one, other in pairs:
        first, second = signatures((microtask(*one), microtask(*other)))
        assert agreement(first, second[None])[0] == 1.0


def test_more_tasks_than_exist_is_a_user_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(Operation("append", word=word) for word in ("wolf", "red", "saw"))
    monkeypatch.setattr("tagi.data.synthetic.micro_splits.OPERATIONS", few)
    with pytest.raises(ConfigError, match="train_compositions: 5 asked for, only 4 "):
        splits(seed=0, train_compositions=5, valid=2, test=4)


def test_shuffled_partner_has_other_answers(split: Split) -> None:
    table = signatures(split.test)
    partners = shuffled_partner(split.test, seed=0)
    assert partners == shuffled_partner(split.test, seed=0) != shuffled_partner(split.test, seed=1)
    for index, partner in enumerate(partners):
        assert partner != index
        defined = table[index] != 0
        assert (table[partner] == table[index])[defined].mean() < 0.05  # worst 0.047


def test_shuffled_partner_falls_back_to_the_least_agreeing_task() -> None:
    remove = microtask(Operation("remove", "animals"))
    identity = microtask(Operation("reverse"), Operation("reverse"))
    for seed in range(5):
        assert shuffled_partner([remove, remove, identity], seed)[:2] == [2, 2]


def test_written_tasks_are_read_back_as_they_were(tmp_path: Path, split: Split) -> None:
    task = split.compositions[0].task(demonstrations=2)
    write_sni(tmp_path, [task], [], instances=5)
    read = load_task(tmp_path / "tasks" / f"{task.name}.json")
    assert (read.name, read.instruction, read.categories) == (task.name, task.instruction, task.categories)
    assert list(read.examples) == task.examples[:5]


def test_training_on_the_largest_families_alone_leaves_the_test_tasks() -> None:
    few, every = (
        Micro(DataConfig(source="micro", compositions=20, valid_tasks=2, categories=number)).split
        for number in (3, None)
    )
    assert (few.test, few.valid) == (every.test, every.valid)
    counts = Counter(task.operations[-1].family for task in every.train)
    kept = {task.operations[-1].family for task in few.train}
    assert len(kept) == 3 and min(counts[one] for one in kept) >= max(counts[one] for one in counts.keys() - kept)
    assert len(few.train) == sum(counts[one] for one in kept)
