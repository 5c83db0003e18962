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
from dataclasses import dataclass

from tagi.config import PromptStyle
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError

INVOCATION = "\n\nInput:"
"""What an input of style `chat` begins with. White space first: tokenizers split there, so that the ids of the two
parts are those of the whole text."""


@dataclass(frozen=True, slots=True)
class RenderedInstruction:
    """A text with an instruction, and how many demonstrations it holds after the limit was applied."""

    text: str
    demonstrations: int


def render_instruction(
    instruction: Instruction, *, style: PromptStyle, demonstrations: int, fits: Callable[[str], bool]
) -> RenderedInstruction:
    """The definition followed by up to `demonstrations` demonstrations, as many as `fits` lets through.

    As in Tk-Instruct, the first demonstration that makes the text too long ends the list, so the last ones
    are dropped first. A definition that is too long by itself is kept and left to the caller to truncate.

    Args:
        fits: Whether a candidate text is within the length limit.

    Raises:
        InputError: If the definition is blank.
    """
    return _with_demonstrations(_definition(instruction.definition, style), instruction, style, demonstrations, fits)


def _with_demonstrations(
    text: str, instruction: Instruction, style: PromptStyle, demonstrations: int, fits: Callable[[str], bool]
) -> RenderedInstruction:
    shown = instruction.demonstrations[:demonstrations]
    blocks = [_demonstration(item, number, style) for number, item in enumerate(shown, start=1)]
    kept = 0
    for block in blocks:
        if not fits(text + block):
            break
        text, kept = text + block, kept + 1
    return RenderedInstruction(text, kept)


def render_input(text: str, *, style: PromptStyle) -> str:
    """The language model's text for one input.

    Raises:
        InputError: If the input is blank.
    """
    stripped = text.strip()
    if not stripped:
        raise InputError("the input is empty")
    if style == "chat":
        return f"{INVOCATION} {stripped}"
    if style != "tk":
        return stripped
    return f"Now complete the following example -\n{_closed(f'Input: {stripped}')}\nOutput: "


def render_demonstration(item: Demonstration, *, style: PromptStyle) -> str:
    """One demonstration by itself, for a model that encodes demonstrations apart from the input."""
    return _demonstration(item, 1, style)


def render_prompt(
    instruction: Instruction, text: str, *, style: PromptStyle, demonstrations: int, fits: Callable[[str], bool]
) -> RenderedInstruction:
    """The whole prompt, for a model that reads the instruction with every input.

    Args:
        fits: Whether a candidate prompt, input included, is within the length limit.

    Raises:
        InputError: If the definition or the input is blank.
    """
    tail = render_input(text, style=style)
    definition = _definition(instruction.definition, style) if style != "t0" else ""
    head = _with_demonstrations(
        definition, instruction, style, demonstrations, lambda candidate: fits(candidate + tail)
    )
    return RenderedInstruction(head.text + tail, head.demonstrations)


def _definition(definition: str, style: PromptStyle) -> str:
    stripped = definition.strip()
    if not stripped:
        raise InputError("the instruction is empty")
    if style == "chat":
        return stripped
    return f"{stripped}\n" if style != "tk" else _closed(f"Definition: {stripped}") + "\n\n"


def _demonstration(item: Demonstration, number: int, style: PromptStyle) -> str:
    source, target = item.input.strip(), item.output.strip()
    if style == "plain":
        return f"{source} => {target}\n"
    if style == "chat":
        return f"{INVOCATION} {source}\nOutput: {target}"
    if style == "t0":
        return f"{source}\n{target}\n\n"
    lines = f" Positive Example {number} -", _closed(f"Input: {source}"), _closed(f" Output: {target}")
    return "\n".join(lines) + "\n\n"


def _closed(text: str) -> str:
    return text if text[-1] in string.punctuation else text + "."
