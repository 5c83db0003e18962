"""From text to tensors: one batch of T tasks and R rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedTokenizerBase

from tagi.config import PromptConfig
from tagi.data.mixture import TaskGroup
from tagi.data.prompts import render_demonstration, render_input, render_prompt
from tagi.data.tokenizers import chat_turn, encode, surrounding
from tagi.data.types import Instruction
from tagi.methods import Method

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything that a training step reads. Shapes: T tasks, R rows; padding on the right."""

    instruction_ids: Tensor  # (T, S)
    instruction_mask: Tensor  # (T, S)
    input_ids: Tensor  # (R, N)
    input_mask: Tensor  # (R, N)
    labels: Tensor  # (R, O), -100 where padded
    task_index: Tensor  # (R,)
    names: tuple[str, ...] = ()  # of the T tasks
    prompt_ids: Tensor | None = None  # (R, P), instruction and input in one text, for a teacher that reads (a; b)
    prompt_mask: Tensor | None = None  # (R, P)
    shots: tuple[Tensor, Tensor] | None = None  # (T, E, S) each: demonstrations for a teacher, and their mask

    @property
    def tokens(self) -> int:
        """Tokens that are no padding: instructions, inputs and targets."""
        return int(self.instruction_mask.sum() + self.input_mask.sum()) + self.targets

    @property
    def target_ids(self) -> Tensor:
        """Target tokens (R, O), 0 where padded."""
        return self.labels.clamp(min=0)

    @property
    def targets(self) -> int:
        """Target tokens, the count that losses are normalised by."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **tree_map_only(Tensor, lambda x: x.to(device), values))

    def as_prompt(self) -> "Batch":
        """The same rows as a model reads them that takes the instruction with every input."""
        assert self.prompt_ids is not None and self.prompt_mask is not None, "it was collated without prompts"
        ids, mask = self.shots or (self.instruction_ids, self.instruction_mask)
        return replace(
            self, instruction_ids=ids, instruction_mask=mask, input_ids=self.prompt_ids, input_mask=self.prompt_mask
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as a model is to read it: rendered, its tokens limited, with so many demonstrations in it.

    Its parts are tokenized apart, each cut to its own limit; None is not cut.
    """

    parts: tuple[tuple[str, int | None], ...]
    demonstrations: int = 0
    opens: bool = True
    """Whether the tokens stand before it that its tokenizer puts before a text, and `closes` those behind one."""
    closes: bool = True


@dataclass(frozen=True, slots=True)
class Collator:
    """Renders, tokenizes and pads what a method's model reads of tasks and inputs."""

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptConfig
    method: Method
    joined: bool = False
    """Whether instruction, input and answer make one text, as for a decoder-only model, and are not encoded apart."""
    distils: bool = False
    """Whether every row is also rendered with its instruction in the prompt, for a teacher."""
    shots: int = 0
    """Demonstrations that a teacher reads apart from the prompt (FiD)."""

    def __call__(self, groups: Sequence[TaskGroup]) -> Batch:
        rows = [(g.task.instruction, e.input) for g in groups for e in g.examples]
        each = [self.prompts(*row) for row in rows]
        inputs = [prompts[row % len(prompts)] for row, prompts in enumerate(each)]  # of averaged ones, one in turn
        targets = [self.target(e.targets[0]) for g in groups for e in g.examples]
        counts = torch.tensor([len(g.examples) for g in groups])
        batch = assemble([], inputs, targets, torch.arange(len(groups)).repeat_interleave(counts))
        ids, mask = self.instructions([group.task.instruction for group in groups])
        names = tuple(group.task.name for group in groups)
        batch = replace(batch, instruction_ids=ids, instruction_mask=mask, names=names)
        if not self.distils:
            return batch
        if self.shots:
            shots = [self._pieces(group.task.instruction, self.shots) for group in groups]
            batch = replace(batch, shots=pad_pieces([list(map(self._cut, pieces)) for pieces in shots]))
            rows = [(replace(told, demonstrations=()), text) for told, text in rows]
        prompt_ids, prompt_mask = pad([self._cut(self._prompted(*row)) for row in rows])
        return replace(batch, prompt_ids=prompt_ids, prompt_mask=prompt_mask)

    def instructions(self, each: Sequence[Instruction]) -> tuple[Tensor, Tensor]:
        """What a method reads once per task: (T, S), or in pieces (T, E, S), and nothing where it reads none."""
        read = [list(map(self._cut, self.read_once(one))) for one in each]
        return pad_pieces(read) if self.method.apart else pad([parts[0] if parts else [] for parts in read])

    def instruction(self, instruction: Instruction) -> list[int]:
        """Token ids of what the hypernetwork reads."""
        return self._cut(self._instruction(instruction))

    def input(self, instruction: Instruction | None, text: str, *, follows: bool = False) -> list[int]:
        """Token ids of what the language model reads for one input; without an instruction, the input alone."""
        return self._cut(self._input(instruction, text, follows))

    def prompts(self, instruction: Instruction | None, text: str, *, follows: bool = False) -> list[list[int]]:
        """Token ids of all that the language model reads for one input, see `read_with`."""
        return list(map(self._cut, self.read_with(instruction, text, follows=follows)))

    def read_once(self, instruction: Instruction) -> list[Reading]:
        """What is read of an instruction once per task: its text, or its demonstrations apart, or nothing."""
        if self.method.apart:
            return self._pieces(instruction, self.prompt.demonstrations)
        return [self._instruction(instruction)] if self.method.reads_instruction_once else []

    def read_with(self, instruction: Instruction | None, text: str, *, follows: bool = False) -> list[Reading]:
        """What is read with every input: one text, or one for each demonstration where predictions are averaged.

        Args:
            follows: an adapter that is given holds an instruction that is attended to: the input goes on from it.
        """
        if instruction is None or self.method.demonstrations != "averaged":
            return [self._input(instruction, text, follows)]
        shown = instruction.demonstrations[: self.prompt.demonstrations]
        alone = [replace(instruction, demonstrations=(item,)) for item in shown] or [instruction]
        return [self._prompted(one, text) for one in alone]

    def length(self, reading: Reading) -> int:
        """Tokens of a text before any is dropped."""
        return len(self._cut(replace(reading, parts=tuple((text, None) for text, _ in reading.parts))))

    def dropped(self, reading: Reading) -> int:
        """Tokens of a text that are not read, for each part is cut to its own limit."""
        return self.length(reading) - len(self._cut(reading))

    def _pieces(self, instruction: Instruction, count: int) -> list[Reading]:
        """Every demonstration up to `count`, to be encoded apart (FiD)."""
        texts = (render_demonstration(item, style=self.prompt.style) for item in instruction.demonstrations[:count])
        return [Reading(((text, self.prompt.max_input),), 1) for text in texts]

    def _instruction(self, instruction: Instruction) -> Reading:
        head, bare = self._around()[0], self.prompt.style != "chat"
        empty = Reading(((head, self.prompt.max_instruction),), opens=bare, closes=bare and not self.joined)
        return self._fitted(empty, instruction)

    def _input(self, instruction: Instruction | None, text: str, follows: bool) -> Reading:
        if self.method.prompt and instruction is not None:
            return self._prompted(replace(instruction, demonstrations=()) if self.method.apart else instruction, text)
        told = follows or (self.method.fuses_decoder and instruction is not None)
        return self._alone(text, follows=self.joined and told)

    def _alone(self, text: str, *, follows: bool) -> Reading:
        """An input; where it follows an instruction, nothing is put between the two; alone it opens the turn."""
        head, tail = self._around()
        bare, rendered = self.prompt.style != "chat", render_input(text, style=self.prompt.style)
        whole = rendered if follows else head + rendered.lstrip()
        ending = ((tail, None),) if tail else ()
        return Reading(((whole, self.prompt.max_input), *ending), 0, bare and not follows, bare)

    def _prompted(self, instruction: Instruction, text: str) -> Reading:
        if not self.joined:
            return self._fitted(Reading((("", self.prompt.longest_prompt),)), instruction, text)
        told, asked = self._instruction(instruction), self._alone(text, follows=True)
        return Reading(told.parts + asked.parts, told.demonstrations, told.opens, asked.closes)

    def _fitted(self, empty: Reading, instruction: Instruction, text: str | None = None) -> Reading:
        """A part with an instruction behind what it holds, then an input if given: as many demonstrations as fit."""
        ((head, limit),) = empty.parts
        style, shown = self.prompt.style, self.prompt.demonstrations

        def reading(rendered: str, demonstrations: int = 0) -> Reading:
            return replace(empty, parts=((head + rendered, limit),), demonstrations=demonstrations)

        def fits(rendered: str) -> bool:
            return limit is None or self.length(reading(rendered)) <= limit

        return reading(*render_prompt(instruction, text, style=style, demonstrations=shown, fits=fits))

    def _around(self) -> tuple[str, str]:
        return chat_turn(self.tokenizer) if self.prompt.style == "chat" else ("", "")

    def target(self, text: str) -> list[int]:
        """Token ids of a target, and the end of sequence where all of it is there."""
        ids = encode(self.tokenizer, text, self.prompt.max_target)
        whole = len(ids) < self.prompt.max_target  # what was cut, or fills all of the room, has not come to its end
        return [*ids, self.tokenizer.eos_token_id] if whole else ids  # type: ignore[list-item]

    def _cut(self, reading: Reading) -> list[int]:
        before, behind = surrounding(self.tokenizer)
        first, last = before if reading.opens else [], behind if reading.closes else []
        ids: list[int] = []
        for number, (text, limit) in enumerate(reading.parts):
            taken = (len(first) if number == 0 else 0) + (len(last) if number == len(reading.parts) - 1 else 0)
            room = None if limit is None else max(limit - taken, 0)
            ids += encode(self.tokenizer, text, room)
        return [*first, *ids, *last]


def assemble(
    instructions: Sequence[Sequence[int]],
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    task_index: Tensor,
) -> Batch:
    """Token ids to a padded batch."""
    instruction_ids, instruction_mask = pad(instructions)
    input_ids, input_mask = pad(inputs)
    labels, label_mask = pad(targets)
    labels = labels.masked_fill(~label_mask, IGNORE)
    return Batch(instruction_ids, instruction_mask, input_ids, input_mask, labels, task_index)


def pad_pieces(tasks: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids (T, E, S) of every task's pieces, padded in both directions, and the mask of real tokens."""
    most = max((len(pieces) for pieces in tasks), default=0)
    ids, mask = pad([piece for pieces in tasks for piece in [*pieces, *[[]] * (most - len(pieces))]])
    return ids.unflatten(0, (len(tasks), most)), mask.unflatten(0, (len(tasks), most))


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest), padded with 0 on the right, and the mask of real tokens."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.long)
    mask = torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long)
    return ids, mask
