"""The languages of a task: what its file states, and which tasks the name of a language chooses."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from tagi.data.records import Record, as_list

ENGLISH = "English"
"""Tasks that are English throughout."""
OTHERS = "non-english"
"""Tasks with any other language."""
EVERY = "all"

_ENGLISH = re.compile(r"english|(en|eng)([-_].*)?")
"""The language's name, and its codes with or without a region (`en-GB`)."""


@dataclass(frozen=True, slots=True)
class Languages:
    """The languages that a task states of its input, output and instruction; one that states none counts as English."""

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    instruction: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Those that are stated and not English, each once."""
        stated = dict.fromkeys(one.strip() for one in (*self.input, *self.output, *self.instruction) if one.strip())
        return tuple(one for one in stated if not _ENGLISH.fullmatch(one.lower()))

    @property
    def names(self) -> tuple[str, ...]:
        """What the task counts as: its other languages, or English where it has none."""
        return self.others or (ENGLISH,)

    def fit(self, wanted: str) -> bool:
        """Whether `wanted` chooses such a task: the name of a language, `non-english` or `all`, in any case.

        English chooses what is English throughout, by its name or its code; any other language chooses the tasks that
        state it of their input, output or instruction.
        """
        name = wanted.strip().lower()
        if name == EVERY:
            return True
        if name == OTHERS or _ENGLISH.fullmatch(name):
            return bool(self.others) == (name == OTHERS)
        return name in (one.lower() for one in self.others)


UNSTATED = Languages()


Stated = Annotated[list[str] | None, BeforeValidator(as_list)]


class WithLanguages(Record):
    """The benchmark's three fields of languages, each a name, a list of names or left out."""

    input_language: Annotated[Stated, Field(alias="Input_language")] = None
    output_language: Annotated[Stated, Field(alias="Output_language")] = None
    instruction_language: Annotated[Stated, Field(alias="Instruction_language")] = None

    @property
    def languages(self) -> Languages:
        """What they state."""
        return Languages(
            tuple(self.input_language or ()),
            tuple(self.output_language or ()),
            tuple(self.instruction_language or ()),
        )
