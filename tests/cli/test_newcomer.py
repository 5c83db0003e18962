"""What someone new to the Python API writes first: right, or one sentence that says what to write instead."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from test_engine import INPUTS, INSTRUCTIONS, make

from tagi import GenerationConfig, Tagi
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError
from tagi.model import adapter as adapters
from tagi.serve.store import AdapterStore


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make()


def stacked(tagi: Tagi) -> Any:
    return tagi.adapt_all(list(INSTRUCTIONS))


MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    "inputs are a string": (lambda t: t.generate("wolf", t.adapt("a .")), r"inputs must be a list; write \['wolf'\]"),
    "inputs are bytes": (lambda t: t.generate(b"wolf", t.adapt("a .")), r"inputs must be a list; write \[b'wolf'\]"),
    "inputs are None": (lambda t: t.generate(None, t.adapt("a .")), "inputs: None is no list"),
    "inputs are a dict": (lambda t: t.generate({"a": 1}, t.adapt("a .")), "inputs: {'a': 1} is no list"),
    "an input is None": (lambda t: t.generate(["a", None], t.adapt("a .")), "input 2: None is no string"),
    "an input is a list": (lambda t: t.generate([["a"]], t.adapt("a .")), r"input 1: \['a'\] is no string"),
    "an input is blank": (lambda t: t.generate(["a", " \n"], t.adapt("a .")), "input 2: the input is empty"),
    "an input is half an emoji": (
        lambda t: t.generate(["a", "b \ud83d"], t.adapt("a .")),
        "input 2: character 3 is half",
    ),
    "no adapter": (lambda t: t.generate(["a"], None), "adapter: None is no task adapter"),
    "an instruction as an adapter": (lambda t: t.generate(["a"], "a ."), "adapter: an instruction is no task"),
    "a list of adapters": (lambda t: t.generate(["a"], [t.adapt("a .")]), "adapter: a list is no task adapter"),
    "a number as an adapter": (lambda t: t.answer(7, ["a"]), "adapter: 7 is no task adapter"),
    "nothing told": (lambda t: t.answer(None, ["a"]), "adapter: None is no task adapter"),
    "solve with a list": (lambda t: t.solve(["a ."], ["a"]), r"the instruction: \['a .'\] is no string"),
    "solve a string": (lambda t: t.solve("a .", "b c"), r"inputs must be a list; write \['b c'\]"),
    "solve with an adapter": (
        lambda t: t.solve(t.adapt("a ."), ["a"]),
        r"the instruction: TaskAdapter\(.* is no string",
    ),
    "adapt nothing": (lambda t: t.adapt(None), "the instruction: None is no string"),
    "adapt blank": (lambda t: t.adapt(" "), "the instruction is empty"),
    "adapt half an emoji": (lambda t: t.adapt("a \udc80"), "the instruction: character 3 is half"),
    "adapt_all a string": (lambda t: t.adapt_all("a b"), r"instructions must be a list; write \['a b'\]"),
    "adapt_all nothing": (lambda t: t.adapt_all([]), "there are no instructions"),
    "adapt_all a blank": (lambda t: t.adapt_all(["a", ""]), "instruction 2 is empty"),
    "a string as a pair": (lambda t: t.adapt("a .", ["ab"]), "demonstrations: 'ab' is no pair of an input and"),
    "demonstrations twice": (lambda t: t.adapt(Instruction("a ."), [("a", "b")]), "demonstrations are given twice"),
    "half a demonstration": (
        lambda t: t.adapt("a .", [("a", "\ud83d")]),
        "the instruction: demonstration 1: character 1",
    ),
    "a number in a demonstration": (
        lambda t: t.adapt(Instruction("a .", (Demonstration("a", cast(Any, 3)),))),
        "the instruction: demonstration 1: 3 is no string",
    ),
    "stream a list": (lambda t: list(t.stream(t.adapt("a ."), ["a"])), r"the input: \['a'\] is no string"),
    "stream at once": (lambda t: t.stream(t.adapt("a ."), ""), "the input is empty"),
    "a stack without tasks": (lambda t: t.generate(["a"], stacked(t)), "the adapter holds 3 tasks: tasks="),
    "stream of a stack": (lambda t: t.stream(stacked(t), "a"), "the adapter holds 3 tasks: tasks="),
    "task -1": (lambda t: t.generate(["a"], stacked(t), tasks=[-1]), "tasks: -1, of input 1, is none of .*0 to 2"),
    "task 3": (lambda t: t.generate(["a", "b"], stacked(t), tasks=[0, 3]), "tasks: 3, of input 2, is none of"),
    "task 1 of one": (lambda t: t.generate(["a"], t.adapt("a ."), tasks=[1]), "tasks: 1, of input 1, is none of"),
    "too few tasks": (lambda t: t.generate(["a", "b"], stacked(t), tasks=[0]), "tasks: 1 numbers are given for 2 inp"),
    "too many tasks": (lambda t: t.generate(["a"], stacked(t), tasks=[0, 1]), "tasks: 2 numbers are given for 1 inp"),
    "a task is true": (lambda t: t.generate(["a"], stacked(t), tasks=[True]), "tasks: True, of input 1, is no whole"),
    "a task is 1.0": (lambda t: t.generate(["a"], stacked(t), tasks=[1.0]), "tasks: 1.0, of input 1, is no whole"),
    "a task is a string": (lambda t: t.generate(["a"], stacked(t), tasks="0"), r"tasks must be a list; write \['0'\]"),
    "tasks are a number": (lambda t: t.generate(["a"], stacked(t), tasks=0), "tasks: 0 is no list"),
    "decoding is a dict": (
        lambda t: t.generate(["a"], t.adapt("a ."), generation={}),
        "generation: {} is no tagi.GenerationConfig",
    ),
    "an empty stop string": (lambda t: GenerationConfig(stop=""), "stop: a stop string is empty"),
    "a stop that is none": (lambda t: GenerationConfig(stop=cast(Any, [3])), "stop: 3 is no string"),
    "a temperature that is none": (
        lambda t: GenerationConfig(temperature=float("nan")),
        "temperature: nan is no finite number",
    ),
    "half a beam": (lambda t: GenerationConfig(beams=cast(Any, 1.5)), "beams: 1.5 is no whole number"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_newcomer_s_mistake_is_one_sentence(name: str, tagi: Tagi) -> None:
    mistake, sentence = MISTAKES[name]
    with pytest.raises(InputError, match=sentence) as caught:
        mistake(tagi)
    assert "\n" not in str(caught.value)


def test_a_newcomer_s_strings_are_instructions(tagi: Tagi) -> None:
    each = [tagi.adapt(text) for text in INSTRUCTIONS]
    assert [one.origins for one in adapters.unstack(tagi.adapt_all(list(INSTRUCTIONS)))] == [
        one.origins for one in each
    ]
    expected = tagi.generate(INPUTS, each[0])
    assert tagi.solve(INSTRUCTIONS[0], INPUTS) == tagi.solve(Instruction(INSTRUCTIONS[0]), INPUTS) == expected
    assert [one.text for one in tagi.answer(INSTRUCTIONS[0], INPUTS)] == expected
    assert "".join(tagi.stream(INSTRUCTIONS[0], INPUTS[0])) == expected[0]
    assert tagi.generate(iter(INPUTS), each[0]) == tagi.generate(tuple(INPUTS), each[0]) == expected  # type: ignore[arg-type]


def test_a_newcomer_s_stop_string_is_one_stop_string(tagi: Tagi) -> None:
    assert GenerationConfig(stop="plum") == GenerationConfig(stop=("plum",)) == GenerationConfig(stop=["plum"])
    assert hash(GenerationConfig(stop="plum")) == hash(GenerationConfig(stop=("plum",)))


def test_a_newcomer_s_store_reads_no_letters(tagi: Tagi, tmp_path: Any) -> None:
    with AdapterStore(tagi, tmp_path) as store:
        for wrong, sentence in ((("ab"), "must be a list"), ([None], "is no string"), (["\ud83d"], "is half of a")):
            with pytest.raises(InputError, match=sentence):
                store.register_all(wrong)  # type: ignore[arg-type]
        assert store.keys() == []


def test_a_newcomer_s_adapters_print_and_compare(tagi: Tagi) -> None:
    one, same, other = tagi.adapt("a b ."), tagi.adapt("a b ."), tagi.adapt("c .")
    assert one == same != other
    assert "instruction='a b .'" in repr(one) and len(repr(one)) < 200
