"""What is said of texts that do not fit: exactly where tokens are dropped."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import WORDS, make

from tagi import Tagi, methods
from tagi.config import PromptStyle
from tagi.data.types import Demonstration, Instruction

ROOM = 10_000
MODELS = {one.name: make(one.name) for one in methods.METHODS}
MODELS |= {f"{name} of a decoder": make(name, family="decoder") for name in ("tagi", "lora_only", "metatrain")}
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
tasks = st.builds(Instruction, words, st.lists(st.builds(Demonstration, words, words), max_size=3).map(tuple))


def fitted(tagi: Tagi, instruction: int, text: int, demonstrations: int, style: PromptStyle) -> Tagi:
    """The same model with other limits."""
    made = tagi.showing(demonstrations)
    limits = {"max_instruction": instruction, "max_input": text, "style": style}
    made.config = made.config.model_copy(update={"prompt": made.config.prompt.model_copy(update=limits)})
    made.collator = replace(made.collator, prompt=made.config.prompt)
    return made


def once(tagi: Tagi, task: Instruction) -> list[list[int]]:
    """Token ids of what is read once."""
    ids, mask = (x.flatten(0, -2) for x in tagi.collator.instructions([task]))
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True) if real.any()]


@pytest.mark.parametrize("method", MODELS)
@settings(max_examples=80)
@given(
    tasks,
    st.lists(words, min_size=1, max_size=3),
    st.integers(2, 30),
    st.integers(2, 30),
    st.integers(0, 3),
    st.sampled_from(["tk", "plain", "t0"]),
)
def test_a_cut_is_said_exactly_where_tokens_are_dropped(
    method: str,
    task: Instruction,
    texts: list[str],
    instruction: int,
    text: int,
    demonstrations: int,
    style: PromptStyle,
) -> None:
    """By brute force: nothing is dropped where the same is read with room for all and some number of demonstrations."""
    tight = fitted(MODELS[method], instruction, text, demonstrations, style)
    roomy = [fitted(tight, ROOM, ROOM, shown, style) for shown in range(demonstrations + 1)]

    def dropped(one: str) -> bool:
        whole = [ids for model in roomy for ids in model.prompts(task, one)]
        return any(ids not in whole for ids in tight.prompts(task, one))

    notes = "\n".join(tight.notes(task, texts))
    said = {int(number) for number in re.findall(r"input (\d+) has \d+ tokens and was cut", notes)}
    assert said == {number for number, one in enumerate(texts, 1) if dropped(one)}
    whole = [ids for model in roomy for ids in once(model, task)]
    cut_once = any(ids not in whole for ids in once(tight, task))
    assert bool(re.search(r"(the instruction|demonstration \d+) has \d+ tokens and was cut", notes)) == cut_once


def test_a_text_that_fits_only_without_its_wording_is_cut() -> None:
    """The wording of `tk` takes room of its own, and spaces around a text take none."""
    tagi = fitted(MODELS["tagi"], 30, 12, 0, "tk")
    assert len(tagi.collator.input(None, "a b c")) == 12
    (cut,) = tagi.notes(Instruction("a ."), ["a b c"])
    assert re.fullmatch(r"input 1 has \d\d tokens and was cut to its first 12", cut)
    roomy = fitted(MODELS["tagi"], 30, 4, 0, "plain")
    assert roomy.notes(Instruction("a ."), ["   a b c   "]) == []


def test_a_prompt_method_shares_the_room_of_instruction_and_input() -> None:
    tagi = fitted(MODELS["metatrain"], 5, 4, 2, "plain")
    assert tagi.notes(Instruction("a b ."), ["c d e f g"]) == []
    (cut,) = tagi.notes(Instruction("a b c d e ."), ["f g h i"])
    assert cut == "the prompt of input 1 has 11 tokens and was cut to its first 9"
    told = Instruction("a .", (Demonstration("b", "c"), Demonstration("d", "e")))
    both = fitted(MODELS["metatrain"], 5, 9, 2, "plain")
    assert [note for note in both.notes(told, ["a", "a b c d e f"]) if "know" not in note] == [
        "with input 2 the model reads 1 of the 2 demonstrations"
    ]


def test_inputs_are_called_by_their_numbers() -> None:
    tagi = fitted(MODELS["tagi"], 30, 3, 0, "plain")
    assert tagi.notes(None, ["a b c", "a"], [7, 9]) == ["input 7 has 4 tokens and was cut to its first 3"]
