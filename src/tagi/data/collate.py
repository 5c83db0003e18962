"""From text to tensors: one batch of T tasks and R rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi.config import PromptConfig
from tagi.data.mixture import TaskGroup
from tagi.data.prompts import render_input, render_instruction, render_prompt
from tagi.data.types import Instruction

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

    @property
    def tokens(self) -> int:
        """Tokens that are no padding: instructions, inputs and targets."""
        return int(self.instruction_mask.sum() + self.input_mask.sum()) + self.targets

    @property
    def targets(self) -> int:
        """Target tokens, the count that losses are normalised by."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in Batch.__slots__})


@dataclass(frozen=True, slots=True)
class Collator:
    """Renders, tokenizes and pads; `in_prompt` puts the instruction before every input (Tk-Instruct)."""

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptConfig
    in_prompt: bool
    apart: bool
    """Whether the instruction is also tokenized by itself, for a method that reads it once."""

    def __call__(self, groups: Sequence[TaskGroup]) -> Batch:
        instructions = [self.instruction(g.task.instruction) for g in groups] if self.apart else [[]] * len(groups)
        inputs = [self.input(g.task.instruction, e.input) for g in groups for e in g.examples]
        targets = [self.target(e.targets[0]) for g in groups for e in g.examples]
        counts = torch.tensor([len(g.examples) for g in groups])
        return assemble(instructions, inputs, targets, torch.arange(len(groups)).repeat_interleave(counts))

    def instruction(self, instruction: Instruction) -> list[int]:
        """Token ids of what the hypernetwork reads."""
        limit = self.prompt.max_instruction
        rendered = render_instruction(
            instruction,
            style=self.prompt.style,
            positives=self.prompt.positives,
            fits=lambda text: len(self._ids(text)) <= limit,
        )
        return self._cut(rendered.text, limit)

    def input(self, instruction: Instruction | None, text: str) -> list[int]:
        """Token ids of what the language model reads for one input; without an instruction, the input alone."""
        if not self.in_prompt or instruction is None:
            return self._cut(render_input(text, style=self.prompt.style), self.prompt.max_input)
        limit = self.prompt.max_instruction + self.prompt.max_input
        prompt = render_prompt(
            instruction,
            text,
            style=self.prompt.style,
            positives=self.prompt.positives,
            fits=lambda whole: len(self._ids(whole)) <= limit,
        )
        return self._cut(prompt, limit)

    def target(self, text: str) -> list[int]:
        """Token ids of a target, end of sequence included."""
        return self._cut(text, self.prompt.max_target)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]  # type: ignore[return-value]

    def _cut(self, text: str, limit: int) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]  # type: ignore[return-value]


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
    labels = labels.masked_fill(label_mask == 0, IGNORE)
    return Batch(instruction_ids, instruction_mask, input_ids, input_mask, labels, task_index)


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest), padded with 0 on the right, and the mask of real tokens."""
    longest = max((len(s) for s in sequences), default=0)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[i, : len(sequence)] = 1
    return ids, mask
