"""The task-grouped mixture: complete epochs, similar lengths, any batch by its number."""

from collections import Counter

import pytest

from tagi.data.mixture import ENDLESS, Mixture, demonstrated, draw_rows, fixed
from tagi.data.types import Demonstration, Example, Instruction, Task


def make_task(name: str, rows: int) -> Task:
    examples = [Example(f"{name}-{i}", "x" * (1 + 7 * i % 23), (str(i),)) for i in range(rows)]
    return Task(name, Instruction(f"do {name}"), (), examples)


TASKS = fixed([make_task(f"t{i}", rows) for i, rows in enumerate([12, 9, 30, 4, 17])])


def ids(mixture: Mixture, index: int) -> list[str]:
    return [example.id for group in mixture.batch(index) for example in group.examples]


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    forward = Mixture(TASKS, tasks=3, rows=4, seed=7)
    expected = [ids(forward, i) for i in range(60)]
    other = Mixture(TASKS, tasks=3, rows=4, seed=7)
    assert [ids(other, i) for i in (59, 31, 16, 15, 0)] == [expected[i] for i in (59, 31, 16, 15, 0)]
    assert [ids(Mixture(TASKS, tasks=3, rows=4, seed=8), i) for i in range(60)] != expected


def test_every_epoch_visits_every_task_once() -> None:
    mixture = Mixture(TASKS, tasks=5, rows=2, seed=0)
    # windows are cut after sorting by length, so epochs are complete per window of 16 batches of 5 tasks
    seen = Counter(group.task.name for i in range(16) for group in mixture.batch(i))
    assert set(seen.values()) == {16}


@pytest.mark.parametrize(("count", "rows"), [(12, 4), (9, 4), (30, 4), (17, 3), (100, 8)])
def test_a_pass_shows_every_full_group_once(count: int, rows: int) -> None:
    examples = make_task("t", count).examples
    passes = count // rows
    shown = [e.id for visit in range(passes) for e in draw_rows(examples, rows, visit, (0, 0))]
    assert len(shown) == len(set(shown)) == passes * rows
    again = [e.id for visit in range(passes, 2 * passes) for e in draw_rows(examples, rows, visit, (0, 0))]
    assert len(set(again)) == passes * rows
    assert again != shown


def test_a_task_with_fewer_rows_than_asked_for_repeats_them() -> None:
    shown = draw_rows(make_task("t", 3).examples, 4, 0, (0, 0))
    assert len(shown) == 4
    assert len({e.id for e in shown}) == 3


def test_rows_of_a_group_have_similar_lengths() -> None:
    examples = make_task("t", 96).examples
    spread = [
        max(len(e.input) for e in group) - min(len(e.input) for e in group)
        for group in (draw_rows(examples, 8, visit, (0, 0)) for visit in range(12))
    ]
    assert sum(spread) / len(spread) < 0.5 * (23 - 1)  # 4.6 measured


def test_batches_hold_groups_of_similar_length() -> None:
    tasks = fixed([Task(f"t{i}", Instruction("x"), (), [Example("a", "x" * i, ("y",))]) for i in range(1, 129)])
    mixture = Mixture(tasks, tasks=8, rows=1, seed=3)
    for index in range(16):
        lengths = [group.length for group in mixture.batch(index)]
        assert max(lengths) - min(lengths) == 7  # 128 consecutive lengths, sorted and cut into 16 batches of 8


def test_batches_of_a_step_hold_groups_of_similar_length() -> None:
    tasks = fixed([Task(f"t{i}", Instruction("x"), (), [Example("a", "x" * i, ("y",))]) for i in range(1, 129)])
    alone, batches_per_step = (Mixture(tasks, tasks=8, rows=1, seed=3, batches_per_step=count) for count in (1, 4))

    def spread(mixture: Mixture, step: int) -> int:
        lengths = [group.length for index in range(4 * step, 4 * step + 4) for group in mixture.batch(index)]
        return max(lengths) - min(lengths)

    assert [spread(batches_per_step, step) for step in range(4)] == [31] * 4  # 128 consecutive lengths in four steps
    assert max(spread(alone, step) for step in range(4)) > 31

    def names(mixture: Mixture) -> set[tuple[str, ...]]:
        return {tuple(group.task.name for group in mixture.batch(index)) for index in range(16)}

    assert names(batches_per_step) == names(alone)


def test_rows_are_sorted_by_their_prompts_where_asked() -> None:
    def told(i: int) -> Instruction:
        return Instruction("x" * i, (Demonstration("x" * (i % 3), "x"),))

    tasks = fixed([Task(f"t{i}", told(i), (), [Example("a", "x" * (63 - i), ("y",))]) for i in range(1, 64)])
    apart = Mixture(tasks, tasks=4, rows=1, seed=0)
    prompted = Mixture(tasks, tasks=4, rows=1, seed=0, length=lambda group: group.prompt_length(1))
    assert {group.prompt_length(0) for group in prompted.batch(0)} == {64}

    def spread(mixture: Mixture) -> int:
        each = ([group.prompt_length(1) for group in mixture.batch(index)] for index in range(16))
        return sum(max(lengths) - min(lengths) for lengths in each)

    assert spread(prompted) <= 2 < spread(apart)


def test_an_endless_sequence_never_repeats() -> None:
    examples = range(ENDLESS)
    shown = [i for visit in range(500) for i in draw_rows(examples, 8, visit, (0, 0))]  # type: ignore[arg-type]
    assert len(set(shown)) == 4000


SEVERAL = fixed(
    [Task(n, Instruction(n), (), [Example(f"{n}{i}", "x", (f"{n}{i}a", f"{n}{i}b")) for i in range(4)]) for n in "pq"]
)


def test_every_accepted_answer_is_trained_on_over_visits() -> None:
    def drawn(seed: int, index: int, batches_per_step: int = 1) -> list[tuple[str, tuple[str, ...]]]:
        mixture = Mixture(SEVERAL, tasks=2, rows=2, seed=seed, batches_per_step=batches_per_step)
        return sorted((row.id, row.targets) for group in mixture.batch(index) for row in group.examples)

    mixture = Mixture(SEVERAL, tasks=2, rows=2, seed=0)
    seen = Counter(row.targets for i in range(200) for group in mixture.batch(i) for row in group.examples)
    assert seen.keys() == {(f"{n}{i}{x}",) for n in "pq" for i in range(4) for x in "ab"}
    # 100 visits of every row: a fair draw leaves 30 to 70 but once in 16,000
    assert all(30 <= count <= 70 for count in seen.values())
    assert drawn(0, 37) == drawn(0, 37), "a batch is a function of its number, so that a run resumes"
    assert any(drawn(0, i) != drawn(1, i) for i in range(4))
    one, two = ([drawn(0, i, batches_per_step) for i in range(16)] for batches_per_step in (1, 2))
    assert sorted(map(str, one)) == sorted(map(str, two)), "for any number of processes a window holds the same"


def test_evaluation_keeps_all_accepted_answers() -> None:
    assert all(len(row.targets) == 2 for task in SEVERAL.first() for row in task.examples)
    mixture = Mixture(SEVERAL, tasks=1, rows=1, seed=0)
    assert len(mixture.batch(0)[0].task.examples[0].targets) == 2


@pytest.mark.parametrize(("shown", "asked"), [(2, 3), (1, 8), (9, 1)])
def test_support_and_query_examples_of_a_visit_are_apart(shown: int, asked: int) -> None:
    """A.1: k support examples and m query examples of one task, both drawn anew on every visit."""
    tasks = [make_task("t", 12), make_task("u", 9)]
    mixture = Mixture(demonstrated(tasks, shown), tasks=1, rows=asked, seed=3)
    rows = {task.name: {(row.input, row.targets[0]) for row in task.examples} for task in tasks}
    supports: dict[str, set[frozenset[str]]] = {"t": set(), "u": set()}
    queried: dict[str, set[str]] = {"t": set(), "u": set()}
    for index in range(120):
        (group,) = mixture.batch(index)
        support = [(one.input, one.output) for one in group.task.instruction.demonstrations]
        query = [(row.input, row.targets[0]) for row in group.examples]
        assert len(set(support)) == min(shown, len(rows[group.task.name]) - 1) and len(query) == asked
        assert set(support) | set(query) <= rows[group.task.name] and not set(support) & set(query)
        supports[group.task.name].add(frozenset(answer for _, answer in support))
        queried[group.task.name] |= {answer for _, answer in query}
    assert all(len(each) > 5 for each in supports.values())
    assert {name: len(each) for name, each in queried.items()} == {"t": 12, "u": 9}
