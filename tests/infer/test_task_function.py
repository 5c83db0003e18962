"""A task as a function is the engine with one adapter."""

import re
from pathlib import Path

import pytest
from test_engine import BOTH, INPUTS, make

from tagi.errors import InputError
from tagi.model.adapter import TaskAdapter

TOLD = "a b c d ."


@BOTH
def test_a_task_function_answers_as_the_engine_does(family: str, tmp_path: Path) -> None:
    tagi = make(family=family)
    task = tagi.task(TOLD)
    expected = tagi.solve(TOLD, INPUTS)
    assert task.batch(INPUTS) == [task(text) for text in INPUTS] == expected
    assert ["".join(task.stream(text)) for text in INPUTS] == expected
    assert task.instruction == TOLD and task.adapter == tagi.adapt(TOLD)
    task.save_pretrained(tmp_path / "task")
    assert TaskAdapter.from_pretrained(tmp_path / "task") == task.adapter


@BOTH
def test_a_task_function_chooses_the_likeliest(family: str) -> None:
    tagi, choices = make(family=family), ["a b", "c", "e f g"]
    task = tagi.task(TOLD)
    scores = tagi.score_choices(TOLD, INPUTS, choices)
    chosen = [task.choose(text, choices) for text in INPUTS]
    assert chosen == [choices[each.index(max(each))] for each in scores]
    assert tagi.score_choices(task.adapter, INPUTS, choices) == scores
    with pytest.raises(InputError, match="no choices"):
        task.choose("a", [])
    with pytest.raises(InputError, match="choices must be a list"):
        task.choose("a", "b")


def test_a_task_function_says_what_it_is() -> None:
    task = make("tagi").task(TOLD, demonstrations=[("a", "b")])
    assert re.fullmatch(
        r"TaskFunction\('a b c d \.', method='tagi', rank=3, parameters=\d+, tokens=\d+, nbytes=\d+\)", repr(task)
    )
    assert {"batch", "choose", "stream", "adapter", "instruction", "save_pretrained"} <= set(dir(task))


def test_a_prompted_method_has_no_task_function() -> None:
    with pytest.raises(InputError, match="reads the instruction with every input"):
        make("metatrain").task(TOLD)
