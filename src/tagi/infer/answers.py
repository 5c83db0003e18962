"""Between tokens and texts: what of an answer's tokens is the answer."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from tagi.errors import TagiError
from tagi.infer.search import FinishReason


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of an answer, why it ended, and how many tokens it took."""

    text: str
    finish_reason: FinishReason | None
    tokens: int
    error: Exception | None = None
    """What ended it before its end: a `TagiError`, or whatever a stop function of the caller's raised."""


def seeded(seed: int, inputs: Sequence[str | Sequence[int]]) -> list[str]:
    """What decides the draws of each answer: the seed and the input, and for equal inputs how many came before.

    So nothing else in the batch does.
    """
    before: Counter[str | Sequence[int]] = Counter()
    seeds = []
    for text in inputs:
        seeds.append(f"{seed} {before[text]} {text}")
        before[text] += 1
    return seeds


def raised(answers: list[Answer]) -> list[Answer]:
    """The answers, if nothing went wrong with any of them.

    Raises:
        TagiError: what went wrong with the first such input; says which where there are several.
    """
    for number, answer in enumerate(answers, 1):
        if isinstance(answer.error, TagiError) and len(answers) > 1:
            raise type(answer.error)(f"input {number}: {answer.error}") from answer.error
        if answer.error is not None:
            raise answer.error
    return answers


_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Tokens of single bytes as `tokenizers` spells them; what a run of them means is known at its end only."""
_UNDECODED = "\ufffd"
_CLEANED = 3
"""Spaces at the end of a text that the clean-up of spaces may still take away: of "n ' t" it makes "n't"."""


@dataclass(frozen=True, slots=True)
class AnswerTexts:
    """What text the tokens of an answer are: decoded, cut before the first stop string, without white space around it.

    A stream shows of a growing answer what no further token can change, so that its pieces join to exactly that text.
    """

    tokenizer: PreTrainedTokenizerBase

    def answer(
        self, tokens: Sequence[int], reason: FinishReason | None, stop: Sequence[str], error: Exception | None = None
    ) -> Answer:
        """The answer that these tokens are."""
        text = self._decoded(tokens)
        stopped = cut(text, stop)
        return Answer((text if stopped is None else stopped).strip(), reason, len(tokens), error)

    def stopped(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether a stop string stands in the text of these tokens."""
        return cut(self._decoded(tokens), stop) is not None

    def settled(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The beginning of the answer that stays whatever tokens follow these."""
        closed = len(tokens)
        while closed and self._goes_on(tokens[closed - 1]):
            closed -= 1
        text = self._decoded(tokens[:closed]).rstrip(_UNDECODED)
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            for _ in range(_CLEANED):
                text = text[: max(text.rfind(" "), 0)]
        return held_back(text, stop).strip()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of every token, special ones too, as they join to that of all.

        A character that several tokens make is the last one's; the others have no text.
        """
        found, start, shown = list[str](), 0, 0
        for end in range(1, len(tokens) + 1):
            text = self._spelled(tokens[start:end])
            if text.endswith(_UNDECODED) and end < len(tokens):
                found.append("")
                continue
            found.append(text[shown:])
            start, shown = end - 1, len(self._spelled(tokens[end - 1 : end]))
        return found

    def _spelled(self, tokens: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _goes_on(self, token: int) -> bool:
        """Whether a run of bytes may go on behind this token: one of them, or one that is skipped between them."""
        name = cast("str | None", self.tokenizer.convert_ids_to_tokens(token))
        return name is None or _BYTE.fullmatch(name) is not None or not self._decoded([token])

    def _decoded(self, tokens: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def cut(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first stop string; None if there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None


def held_back(text: str, stop: Sequence[str]) -> str:
    """A growing text without the end of it that may become a stop string."""
    begun = [size for one in stop for size in range(1, min(len(one), len(text)) + 1) if text.endswith(one[:size])]
    return text[: len(text) - max(begun, default=0)]
