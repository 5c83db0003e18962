"""A task as a function: an adapter with the model that it is applied to."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagi.backbones.lora import ranks
from tagi.infer.choices import likeliest
from tagi.infer.search import GREEDY, GenerationConfig
from tagi.model.adapter import SHOWN, TaskAdapter

if TYPE_CHECKING:
    from tagi.infer.engine import Tagi  # which makes these


class TaskFunction:
    """One task: call it with a text.

    Examples:
        >>> city = tagi.task("Name the city in the text.")
        >>> city("We met in Oslo.")
        'Oslo'
    """

    def __init__(self, engine: "Tagi", adapter: TaskAdapter) -> None:
        self._engine, self.adapter = engine, adapter

    @property
    def instruction(self) -> str:
        """What was read."""
        return self.adapter.origins[0].definition

    def __call__(self, text: str, *, generation: GenerationConfig = GREEDY) -> str:
        """The answer to one input.

        Raises:
            InputError: it is empty, or longer than the model can read.
        """
        return self._engine.generate([text], self.adapter, generation=generation)[0]

    def batch(self, texts: Sequence[str], *, generation: GenerationConfig = GREEDY) -> list[str]:
        """The answers to many inputs, in their order; errors as of one."""
        return self._engine.generate(texts, self.adapter, generation=generation)

    def stream(self, text: str, *, generation: GenerationConfig = GREEDY) -> Iterator[str]:
        """The answer to one input, piece by piece as it grows."""
        return self._engine.stream(self.adapter, text, generation=generation)

    def choose(self, text: str, choices: Sequence[str]) -> str:
        """The likeliest of some answers, by mean log-likelihood of its tokens.

        Raises:
            InputError: the text or a choice is empty, or there is no choice.
        """
        (scores,) = self._engine.score_choices(self.adapter, [text], choices)
        return likeliest(choices, scores)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter, see `TaskAdapter.save_pretrained`."""
        self.adapter.save_pretrained(folder)

    def __repr__(self) -> str:
        adapter = self.adapter
        numbers = sum(tensor.numel() for tensor in adapter.written)
        said = {
            "method": adapter.origins[0].method,
            "rank": ranks(self._engine.model.modules_of(adapter)),
            "parameters": numbers,
            "tokens": int(adapter.instruction.mask.sum()),
            "nbytes": adapter.nbytes,
        }
        shown = textwrap.shorten(self.instruction, SHOWN)
        return f"TaskFunction({shown!r}, {', '.join(f'{name}={value!r}' for name, value in said.items())})"
