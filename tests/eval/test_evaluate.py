"""Evaluation: tasks that are answered together give what each gives alone, under every control."""

from itertools import pairwise

import pytest
from test_engine import make

from tagi import Tagi
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.eval import evaluate as evaluation
from tagi.eval.evaluate import AdapterControl, InstructionControl, evaluate
from tagi.model.adapter import TaskAdapter

SHOWN = (Demonstration("a b", "c"), Demonstration("d", "e f"))
DEFINITIONS = ("a b c d .", "e f .", "g h i j k l m n .", "o p a .")
TEXTS = ("a", "b c d", "e f g h i j", "k l", "a a a a")
PARTNERS = [2, 3, 1, 0]


def tasks() -> list[Task]:
    """Four tasks of two to five examples."""
    return [
        Task(
            f"task{number}",
            Instruction(definition, SHOWN),
            (f"kind{number}",),
            [Example(f"{number}-{place}", text, ("a",)) for place, text in enumerate(TEXTS[: 2 + number])],
        )
        for number, definition in enumerate(DEFINITIONS)
    ]


def controlled(tagi: Tagi, control: AdapterControl, own: Instruction, other: Instruction) -> TaskAdapter:
    adapter = tagi.adapt(own)
    return {
        "full": adapter,
        "lora_only": adapter.without_instruction(),
        "memory_only": adapter.without_modules(),
        "other_lora": adapter.with_modules_of(tagi.adapt(other)),
    }[control]


@pytest.mark.parametrize("together", [1, 6, 100])
@pytest.mark.parametrize("family", ["t5", "decoder"])
@pytest.mark.parametrize("control", ["full", "lora_only", "memory_only", "other_lora"])
def test_tasks_answered_together_equal_each_alone(
    control: AdapterControl, family: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "TOGETHER", together)
    tagi, every = make("tagi", family=family, demonstrations=2), tasks()
    found = evaluate(tagi, every, adapter=control, partners=PARTNERS)
    expected = [
        text
        for task, partner in zip(every, PARTNERS, strict=True)
        for text in tagi.generate(
            [example.input for example in task.examples],
            controlled(tagi, control, task.instruction, every[partner].instruction),
        )
    ]
    assert [one.text for one in found.predictions] == expected
    assert len(set(expected)) > 3
    assert found.tasks == [task.name for task in every for _ in task.examples]


@pytest.mark.parametrize("instruction", ["aligned", "shuffled", "empty", "prompt"])
@pytest.mark.parametrize(
    ("method", "family"),
    [("tagi", "t5"), ("tagi", "decoder"), ("metatrain", "decoder"), ("fid_icl", "t5"), ("ensemble_icl", "decoder")],
)
def test_every_method_is_told_the_right_instruction(method: str, family: str, instruction: InstructionControl) -> None:
    tagi, every = make(method, family=family, demonstrations=2), tasks()
    seen: list[tuple[int, int]] = []
    found = evaluate(
        tagi, every, instruction=instruction, partners=PARTNERS, progress=lambda done, total: seen.append((done, total))
    )
    asked = evaluation.prompted(tagi) if instruction == "prompt" else tagi
    expected: list[str] = []
    for number, task in enumerate(every):
        inputs = [example.input for example in task.examples]
        told = every[PARTNERS[number]].instruction if instruction == "shuffled" else task.instruction
        expected += tagi.generate(inputs, tagi.neutral()) if instruction == "empty" else asked.solve(told, inputs)
    assert [one.text for one in found.predictions] == expected
    assert seen[-1] == (14, 14) and all(one < other for one, other in pairwise(seen))
