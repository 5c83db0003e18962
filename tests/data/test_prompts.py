import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagi.config import PromptStyle
from tagi.data.prompts import Rendered, render_input, render_prompt
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError

text = st.text(max_size=30) | st.sampled_from(["Sort it", "Sort it!", "a\nb", " x ", "Ends in \u3002", "=>"])
written = text.filter(str.strip)
style = st.sampled_from(["tk", "plain"])
instruction = st.builds(Instruction, written, st.lists(st.builds(Demonstration, text, text), max_size=4).map(tuple))


def always(_: str) -> bool:
    return True


def collated(item: Instruction, source: str, demonstrations: int, limit: int) -> str:
    """Tk-Instruct's prompt by its rules, line by line: definition, then examples while all of it fits."""
    opening = [ended("Definition", item.definition), ""]
    closing = ["Now complete the following example -", ended("Input", source), "Output: "]
    shown: list[str] = []
    for number, example in enumerate(item.demonstrations[:demonstrations], start=1):
        title = f" Positive Example {number} -"
        more = [*shown, title, ended("Input", example.input), ended(" Output", example.output), ""]
        if len("\n".join([*opening, *more, *closing])) > limit:
            break
        shown = more
    return "\n".join([*opening, *shown, *closing])


def ended(label: str, value: str) -> str:
    return re.sub(r"([^!-/:-@\[-`{-~])\Z", r"\1.", f"{label}: {value.strip()}")


@given(instruction, written, st.integers(0, 4), st.integers(0, 400))
def test_tk_prompt_equals_the_collators(item: Instruction, source: str, demonstrations: int, limit: int) -> None:
    prompt = render_prompt(
        item, source, style="tk", demonstrations=demonstrations, fits=lambda candidate: len(candidate) <= limit
    )
    assert prompt.text == collated(item, source, demonstrations, limit)


def test_tk_wording_literally() -> None:
    item = Instruction("Name the animals", (Demonstration("red cat", "cat"), Demonstration("a dog?", "dog.")))
    assert render_prompt(item, " blue wolf ", style="tk", demonstrations=2, fits=always).text == (
        "Definition: Name the animals.\n\n"
        " Positive Example 1 -\nInput: red cat.\n Output: cat.\n\n"
        " Positive Example 2 -\nInput: a dog?\n Output: dog.\n\n"
        "Now complete the following example -\nInput: blue wolf.\nOutput: "
    )


def test_plain_wording_literally() -> None:
    item = Instruction(" Name the animals. ", (Demonstration("red cat", "cat"),))
    prompt = render_prompt(item, " blue wolf ", style="plain", demonstrations=2, fits=always)
    assert prompt == Rendered("Name the animals.\nred cat => cat\nblue wolf", 1)


@given(instruction, written, st.integers(0, 4), style, st.integers(0, 400))
def test_the_two_parts_concatenate_to_the_whole_prompt(
    item: Instruction, source: str, demonstrations: int, style: PromptStyle, limit: int
) -> None:
    tail = render_input(source, style=style)

    def whole_fits(head: str) -> bool:
        return len(head + tail) <= limit

    head = render_prompt(item, None, style=style, demonstrations=demonstrations, fits=whole_fits)
    whole = render_prompt(
        item, source, style=style, demonstrations=demonstrations, fits=lambda prompt: len(prompt) <= limit
    )
    assert whole == Rendered(head.text + tail, head.demonstrations)


@given(instruction, st.integers(0, 4), style, st.integers(0, 400))
def test_as_many_leading_demonstrations_as_fit(
    item: Instruction, demonstrations: int, style: PromptStyle, limit: int
) -> None:
    def fits(candidate: str) -> bool:
        return len(candidate) <= limit

    rendered = render_prompt(item, None, style=style, demonstrations=demonstrations, fits=fits)
    available = min(demonstrations, len(item.demonstrations))
    prefixes = [prefix(item, style, count) for count in range(available + 1)]
    kept = max((n for n in range(1, available + 1) if fits(prefixes[n])), default=0)
    assert rendered == Rendered(prefixes[kept], kept)


def prefix(item: Instruction, style: PromptStyle, count: int) -> str:
    return render_prompt(item, None, style=style, demonstrations=count, fits=always).text


def test_a_definition_that_does_not_fit_is_kept_without_demonstrations() -> None:
    item = Instruction("Reverse it.", (Demonstration("a b", "b a"),))
    rendered = render_prompt(item, None, style="tk", demonstrations=2, fits=lambda _: False)
    assert rendered == Rendered("Definition: Reverse it.\n\n", 0)


@pytest.mark.parametrize("style", ["tk", "plain"])
@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blank_text_is_an_input_error(style: PromptStyle, blank: str) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("the input is empty", lambda: render_input(blank, style=style)),
        (
            "the instruction is empty",
            lambda: render_prompt(Instruction(blank), "x", style=style, demonstrations=0, fits=always),
        ),
        (
            "the input is empty",
            lambda: render_prompt(Instruction("Sort."), blank, style=style, demonstrations=0, fits=always),
        ),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=f"^{message}$"):
            call()
