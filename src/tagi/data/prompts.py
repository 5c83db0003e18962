"""An instruction and an input as text.

Every prompt is cut in two: the part that belongs to the instruction, which the hypernetwork reads once per
task, and the part that belongs to the input, which the language model reads. The two concatenate to exactly
the prompt that a model with the instruction in its prompt reads, so that both see the same characters.

Style `tk` is the wording of Tk-Instruct's data collator (Wang et al. 2022, `ni_collator.py`: definition and
positive examples without explanations). Style `plain` has no wording of its own: the definition, one
`input => output` line per demonstration, and the input. Style `t0` is for P3 (Sanh et al. 2022), where a template is
already around every input: the definition is the template by itself, a whole prompt is the rendered input, and what
stands before it are demonstrations only. Style `chat` makes instruction and input one turn of a user, around which the
collator puts what the tokenizer's chat template does; an input begins with `INVOCATION`, so that an adapter that is
active from there on can be told where that is (PEFT's activated LoRA is told by tokens).
"""

import string
from collections.abc import Callable
from typing import NamedTuple

from tagi.config import PromptStyle
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError

INVOCATION = "\n\nInput:"
"""What an input of style `chat` begins with. White space first: tokenizers split there, so that the ids of the two
parts are those of the whole text."""


class Rendered(NamedTuple):
    """A text with an instruction, and how many demonstrations it holds after the limit was applied."""

    text: str
    demonstrations: int


def render_prompt(
    instruction: Instruction,
    text: str | None,
    *,
    style: PromptStyle,
    demonstrations: int,
    fits: Callable[[str], bool],
) -> Rendered:
    """The definition followed by up to `demonstrations` demonstrations, as many as `fits` lets through.

    As in Tk-Instruct, the first demonstration that makes the text too long ends the list, so the last ones
    are dropped first. A definition that is too long by itself is kept and left to the caller to truncate.

    Args:
        text: The input, for a model that reads the instruction with every input; None for the instruction alone.
        fits: Whether a candidate text, input included, is within the length limit.

    Raises:
        InputError: If the definition or the input is blank.
    """
    tail = "" if text is None else render_input(text, style=style)
    head, kept = "" if tail and style == "t0" else _definition(instruction.definition, style), 0
    for number, item in enumerate(instruction.demonstrations[:demonstrations], start=1):
        block = render_demonstration(item, style=style, number=number)
        if not fits(head + block + tail):
            break
        head, kept = head + block, number
    return Rendered(head + tail, kept)


def render_input(text: str, *, style: PromptStyle) -> str:
    """The language model's text for one input; an InputError where that is blank."""
    stripped = text.strip()
    if not stripped:
        raise InputError("the input is empty")
    if style == "chat":
        return f"{INVOCATION} {stripped}"
    if style != "tk":
        return stripped
    return f"Now complete the following example -\n{_closed(f'Input: {stripped}')}\nOutput: "


def render_demonstration(item: Demonstration, *, style: PromptStyle, number: int = 1) -> str:
    """One demonstration, by its number among all that are shown."""
    source, target = item.input.strip(), item.output.strip()
    if style == "plain":
        return f"{source} => {target}\n"
    if style == "chat":
        return f"{INVOCATION} {source}\nOutput: {target}"
    if style == "t0":
        return f"{source}\n{target}\n\n"
    lines = f" Positive Example {number} -", _closed(f"Input: {source}"), _closed(f" Output: {target}")
    return "\n".join(lines) + "\n\n"


def _definition(definition: str, style: PromptStyle) -> str:
    stripped = definition.strip()
    if not stripped:
        raise InputError("the instruction is empty")
    if style == "chat":
        return stripped
    return f"{stripped}\n" if style != "tk" else _closed(f"Definition: {stripped}") + "\n\n"


def _closed(text: str) -> str:
    return text if text[-1] in string.punctuation else text + "."
