"""What a caller asks of the engine, checked where it comes in: one sentence in place of a wrong answer.

A string is a sequence of strings too, so each list is checked for being one: it would be read letter by letter.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from tagi.data.tokenizers import check_text
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError
from tagi.infer.search import GenerationConfig
from tagi.model.adapter import TaskAdapter


def text(value: Any, name: str) -> str:
    """A string that tokenizers can read; `name` stands before the sentence that refuses another.

    Raises:
        InputError: no string, or half a character.
    """
    if not isinstance(value, str):
        raise InputError(f"{name}: {_shown(value)} is no string")
    try:
        check_text(value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return value


def inputs(values: Any) -> list[str]:
    """Inputs to answer.

    Raises:
        InputError: no list of strings, or one that is blank or cannot be read; says which.
    """
    found = [text(value, f"input {number}") for number, value in enumerate(_listed(values, "inputs"), 1)]
    for number, one in enumerate(found, 1):
        if not one.strip():
            raise InputError("the input is empty" if len(found) == 1 else f"input {number}: the input is empty")
    return found


def prompts(values: Any) -> list[str] | list[tuple[int, ...]]:
    """Inputs to answer, or whole prompts as tuples of token ids, which are read as they stand.

    Raises:
        InputError: see `inputs`.
    """
    found = _listed(values, "inputs")
    return found if found and all(isinstance(one, tuple) for one in found) else inputs(found)


def instruction(
    value: Any, demonstrations: Sequence[tuple[str, str]] = (), name: str = "the instruction"
) -> Instruction:
    """An instruction, or the definition of one, perhaps with demonstrations.

    Raises:
        InputError: something else, a blank definition, text that cannot be read, or demonstrations given twice.
    """
    if isinstance(value, Instruction) and demonstrations:
        raise InputError(f"{name}: demonstrations are given twice, in it and beside it")
    if not isinstance(value, Instruction):
        value = Instruction(
            text(value, name), tuple(_demonstration(pair) for pair in _listed(demonstrations, "demonstrations"))
        )
    if not text(value.definition, name).strip():
        raise InputError(f"{name} is empty")
    for number, shown in enumerate(value.demonstrations, 1):
        for side in (shown.input, shown.output):
            text(side, f"{name}: demonstration {number}")
    return value


def instructions(values: Any) -> list[Instruction]:
    """Several instructions, or their definitions.

    Raises:
        InputError: no list, an empty one, or see `instruction`; says which.
    """
    found = _listed(values, "instructions")
    if not found:
        raise InputError("there are no instructions")
    named = "the instruction" if len(found) == 1 else "instruction {}"
    return [instruction(value, name=named.format(number)) for number, value in enumerate(found, 1)]


def adapter(value: Any) -> TaskAdapter:
    """A task adapter.

    Raises:
        InputError: something else; says what is meant instead.
    """
    if isinstance(value, TaskAdapter):
        return value
    if value is None:
        raise InputError("adapter: None is no task adapter; tagi.neutral() is the one that changes nothing")
    if isinstance(value, str | Instruction):
        raise InputError(
            "adapter: an instruction is no task adapter; adapt(...) writes one, solve(...) takes it as it is"
        )
    if isinstance(value, list | tuple):
        raise InputError(
            "adapter: a list is no task adapter; tagi.model.adapter.stack(...) makes one of several, "
            "and tasks=[...] says which one each input belongs to"
        )
    raise InputError(f"adapter: {_shown(value)} is no task adapter")


def choices(values: Any, count: int) -> list[list[str]]:
    """Answers to choose from: of every input its own, or the same list of strings for all.

    Raises:
        InputError: no lists, not of as many inputs, an empty one, or a choice that is blank or cannot be read.
    """
    listed = _listed(values, "choices")
    each = [listed] * count if all(isinstance(one, str) for one in listed) else [_listed(x, "choices") for x in listed]
    if len(each) != count:
        raise InputError(f"choices: {len(each)} lists are given for {count} inputs")
    for number, own in enumerate(each, 1):
        if not own:
            raise InputError(f"input {number} has no choices to rank")
        if not all(text(choice, f"choices of input {number}").strip() for choice in own):
            raise InputError(f"input {number} has an empty choice")
    return each


def told(value: Any) -> list[Instruction] | TaskAdapter:
    """What inputs are to be solved by.

    Raises:
        InputError: neither an instruction, nor several, nor an adapter.
    """
    if isinstance(value, str | Instruction):
        return [instruction(value)]
    several = isinstance(value, list | tuple) and all(isinstance(one, str | Instruction) for one in value)
    return instructions(value) if several else adapter(value)


def read_by(adapter: TaskAdapter) -> Instruction | None:
    """The instruction that a single task's adapter was written from; None of a LoRA that was trained elsewhere."""
    (origin,) = adapter.origins
    if not origin.definition:
        return None
    return Instruction(origin.definition, tuple(Demonstration(*pair) for pair in origin.demonstrations))


def owners(tasks: Any, held: int, count: int) -> list[int]:
    """Which of so many stacked tasks each of `count` inputs belongs to.

    Raises:
        InputError: it is not said and there are several, or not of as many inputs, or of a task that is not there.
    """
    if tasks is None:
        if held != 1:
            raise InputError(f"the adapter holds {held} tasks: tasks=[...] must say which one each input belongs to")
        return [0] * count
    found = _listed(tasks, "tasks")
    if len(found) != count:
        raise InputError(f"tasks: {len(found)} numbers are given for {count} inputs")
    return [_owner(value, held, number) for number, value in enumerate(found, 1)]


def generation(value: Any) -> GenerationConfig:
    """How answers are searched for.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, GenerationConfig):
        raise InputError(f"generation: {_shown(value)} is no tagi.GenerationConfig")
    return value


def _owner(value: Any, held: int, number: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        owner = operator.index(value)
    except TypeError as error:
        raise InputError(f"tasks: {_shown(value)}, of input {number}, is no whole number") from error
    if not 0 <= owner < held:
        raise InputError(f"tasks: {owner}, of input {number}, is none of the adapter's tasks, 0 to {held - 1}")
    return owner


def _demonstration(pair: Any) -> Demonstration:
    if isinstance(pair, Demonstration):
        return pair
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise InputError(f"demonstrations: {_shown(pair)} is no pair of an input and an output")
    return Demonstration(*pair)


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, str | bytes):
        raise InputError(f"{name} must be a list; write [{_shown(values)}]")
    if isinstance(values, dict | Instruction | TaskAdapter) or not isinstance(values, Iterable):
        raise InputError(f"{name}: {_shown(values)} is no list")
    return list(values)


def _shown(value: Any) -> str:
    said = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
