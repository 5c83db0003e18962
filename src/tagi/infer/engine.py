"""Text in, text out: the engine that `run`, `eval`, in-training evaluation and a server share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tagi.config import Shape
from tagi.data.collate import Batch, Collator, pad
from tagi.data.prompts import render_instruction
from tagi.data.tokenizers import unknown_words
from tagi.data.types import Demonstration, Instruction
from tagi.errors import CheckpointError, InputError
from tagi.files import atomic_folder, check_replaceable
from tagi.infer.decode import greedy
from tagi.model import adapter as adapters
from tagi.model import checkpoint, hub
from tagi.model.adapter import Origin, TaskAdapter
from tagi.model.cards import CARD, card
from tagi.model.checkpoint import BACKBONE, ModelConfig
from tagi.model.peft_files import is_peft, load_peft
from tagi.model.rows import Rows
from tagi.model.t5_hf import locate
from tagi.model.tagi import Output, Prepared, TagiModel, neutral, shift_right

Positives = Sequence[tuple[str, str]]
BATCH = 64
FOLDED_FROM = 3
"""Inputs of one task from which on folding its LoRA into the weights saves more than it costs."""


class Tagi:
    """A model that reads an instruction once, writes a task adapter, and solves inputs wearing it.

    >>> tagi = Tagi.from_pretrained("checkpoint")
    >>> adapter = tagi.adapt("Keep only the animals, then reverse the list.")
    >>> tagi.generate(["red wolf saw dog plum"], adapter)
    ['dog wolf']
    """

    def __init__(self, model: TagiModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self.collator = Collator(tokenizer, config.prompt, model.method)
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        backbone: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Open a TAGI checkpoint: a folder or a hub name.

        Args:
            backbone: where the frozen backbone lies now, if not where the checkpoint says.

        Raises:
            CheckpointError: no checkpoint, half-written, damaged, or of another backbone.
        """
        loaded = checkpoint.load(locate(source), backbone=backbone)
        tokenizer = load_tokenizer(loaded.folder)
        opened = cls(loaded.model, tokenizer, loaded.config)
        if dtype != torch.float32:
            opened.fingerprint()  # of the values as they were written: adapters are worn at any precision
        opened.model.to(device, dtype)
        return opened

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the checkpoint whole or not at all, in the place of one that lies there already; a frozen backbone is
        referred to, not copied.

        Raises:
            DiskError: something else lies there, or the disk is full or cannot be written.
        """
        check_replaceable(Path(folder), checkpoint.CONFIG, checkpoint.KIND)
        with atomic_folder(Path(folder)) as draft:
            checkpoint.write(self.model, self.config, draft, dtype=dtype)
            self.tokenizer.save_pretrained(draft)
            (draft / CARD).write_text(_card(self), encoding="utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, see `tagi.model.hub.push`."""
        return hub.push(self.save_pretrained, repo_id, **options)

    @torch.inference_mode()
    def adapt(self, instruction: str | Instruction, positives: Positives = ()) -> TaskAdapter:
        """Instruction in, task adapter out: one encoder pass and the generator, no gradient.

        Raises:
            InputError: the instruction is empty, or this method has no adapters.
        """
        return self.adapt_all([_instruction(instruction, positives)])

    @torch.inference_mode()
    def adapt_all(self, instructions: Sequence[Instruction]) -> TaskAdapter:
        """The adapters of several tasks, stacked."""
        if not self.model.method.adapts:
            raise InputError(f"method {self.model.method.name} reads the instruction with every input: no adapter")
        return replace(self._adapt(instructions), origins=tuple(map(self._origin, instructions)))

    def _adapt(self, instructions: Sequence[Instruction]) -> TaskAdapter:
        ids, mask = self.collator.instructions(instructions)
        return self.model.adapt(ids.to(self.device), mask.to(self.device))

    @torch.inference_mode()
    def generate(
        self,
        inputs: Sequence[str],
        adapter: TaskAdapter,
        *,
        tasks: Sequence[int] | None = None,
        max_tokens: int | None = None,
    ) -> list[str]:
        """Solve inputs wearing an adapter; `tasks` names each input's own where several are stacked.

        Raises:
            InputError: an input is empty.
        """
        return self._answer([[self.collator.input(None, text)] for text in inputs], adapter, tasks, max_tokens)

    def solve(self, instruction: Instruction, inputs: Sequence[str], *, max_tokens: int | None = None) -> list[str]:
        """Inputs of one task by whatever this method does with an instruction: adapter or prompt."""
        prompts = [self.prompts(instruction, text) for text in inputs]
        return self._answer(prompts, self.told(instruction), None, max_tokens)

    @torch.inference_mode()
    def told(self, instruction: Instruction | None) -> TaskAdapter:
        """The adapter of a task, neutral where the method writes none or nothing is told."""
        if instruction is None or not self.model.method.reads_instruction_once:
            return self.neutral()
        return self._adapt([instruction])

    @torch.inference_mode()
    def prepare(self, adapter: TaskAdapter, inputs: int) -> Prepared:
        """What so many inputs share, see `prepare`.

        Raises:
            CheckpointError: another checkpoint wrote the adapter.
        """
        self._check_own(adapter, "the adapter")
        return prepare(self.model, adapter, inputs)

    def prompts(self, instruction: Instruction | None, text: str) -> list[list[int]]:
        """Token ids of everything that the language model reads to answer one input: one prompt, or one for each
        demonstration where predictions are averaged."""
        if instruction is not None and self.model.method.demonstrations == "averaged":
            return self.collator.members(instruction, text)
        return [self.collator.input(instruction, text)]

    def neutral(self) -> TaskAdapter:
        """The adapter that changes nothing: the bare model."""
        return neutral(self.model.backbone, 1)

    def forward(self, batch: Batch) -> Output:
        """Teacher-forced logits of a collated batch, with gradients."""
        return teacher_forced(self.model, self.model.backbone.shape, batch)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.backbone.embedding.weight.device

    @torch.inference_mode()
    def _answer(
        self,
        prompts: Sequence[Sequence[Sequence[int]]],
        adapter: TaskAdapter,
        tasks: Sequence[int] | None,
        max_tokens: int | None,
    ) -> list[str]:
        """Greedy answers, in batches of similar length; the order of the inputs, each with its prompts, is kept."""
        limit = max_tokens or self.config.prompt.max_target
        owner = torch.tensor(tasks if tasks is not None else [0] * len(prompts))
        prepared = self.prepare(adapter, len(prompts))
        answers = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: max(map(len, prompts[i])))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            tokens = self._decode([prompts[i] for i in chosen], owner[chosen], prepared, limit)
            for i, text in zip(chosen, self.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
        return answers

    def _decode(
        self, prompts: Sequence[Sequence[Sequence[int]]], owner: Tensor, prepared: Prepared, limit: int
    ) -> Tensor:
        members = len(prompts[0])
        input_ids, mask = (tensor.to(self.device) for tensor in pad([one for each in prompts for one in each]))
        rows = Rows.of(owner.repeat_interleave(members).to(self.device), prepared.adapter.tasks)
        return greedy(self.model, input_ids, mask, prepared, rows, limit, members)

    def notes(self, instruction: Instruction | None, inputs: Sequence[str]) -> list[str]:
        """What a person should know before trusting the answers: what was cut, what the model cannot read."""
        limit = self.config.prompt.max_input
        texts = [(f"input {i}", text, limit) for i, text in enumerate(inputs, 1)]
        if instruction is None:
            return list(self._cut_or_unknown(texts))
        return list(self._notes(instruction, texts))

    def _notes(self, instruction: Instruction, inputs: list[tuple[str, str, int]]) -> Iterator[str]:
        prompt = self.config.prompt
        shown = render_instruction(
            instruction,
            style=prompt.style,
            positives=prompt.positives,
            fits=self._fits(prompt.max_instruction),
        )
        asked = len(instruction.positives)
        if shown.positives < asked:
            yield f"the model reads {shown.positives} of the {asked} demonstrations"
        yield from self._cut_or_unknown([("the instruction", shown.text, prompt.max_instruction), *inputs])

    def _cut_or_unknown(self, texts: Sequence[tuple[str, str, int]]) -> Iterator[str]:
        """Of named texts and how many tokens of each are read."""
        for name, text, limit in texts:
            if (length := self._length(text)) > limit:
                yield f"{name} has {length} tokens and was cut to its first {limit}"
        unknown = [word for _, text, _ in texts for word in unknown_words(self.tokenizer, text)]
        if unknown:
            yield f"the model does not know {', '.join(dict.fromkeys(unknown))}"

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])  # type: ignore[arg-type]

    def _fits(self, limit: int) -> Callable[[str], bool]:
        return lambda text: self._length(text) <= limit

    def load_adapter(self, source: str | Path) -> TaskAdapter:
        """What `TaskAdapter.save_pretrained` wrote with this same checkpoint, or a LoRA in PEFT's files, worn without
        instruction memory; a folder or a hub name.

        Raises:
            CheckpointError: no adapter, a damaged one, one that does not fit, or one that another checkpoint wrote.
        """
        folder = locate(source)
        if is_peft(folder):
            lora = load_peft(folder, self.model.backbone, self.config.backbone_fingerprint)
            adapter = replace(self.neutral(), modules=lora, origins=(self._origin(Instruction("")),))
        else:
            adapter = TaskAdapter.from_pretrained(folder)
            self._check_own(adapter, folder)
            adapters.check_fits(adapter, self.model.backbone, folder / adapters.WEIGHTS)
        return adapter.to(self.device, self.model.backbone.embedding.weight.dtype)

    def fingerprint(self) -> str:
        """Hash of everything that an adapter depends on, backbone and trained parts; taken once, at the first call."""
        if self._fingerprint is None:
            self._fingerprint = checkpoint.fingerprint(self.model)
        return self._fingerprint

    def _origin(self, instruction: Instruction) -> Origin:
        positives = tuple((one.input, one.output) for one in instruction.positives)
        return Origin(
            checkpoint=self.fingerprint(),
            method=self.config.method,
            definition=instruction.definition,
            positives=positives,
        )

    def _check_own(self, adapter: TaskAdapter, name: str | Path) -> None:
        for origin in adapter.origins:
            if origin.checkpoint != self.fingerprint():
                raise CheckpointError(
                    f"{name}: another checkpoint wrote it (fingerprint {origin.checkpoint}, not {self.fingerprint()})"
                )


def prepare(model: TagiModel, adapter: TaskAdapter, inputs: int) -> Prepared:
    """What so many inputs share; the LoRA of a single task is folded into the weights where that pays."""
    return model.prepare(adapter, fold=adapter.tasks == 1 and inputs >= FOLDED_FROM)


def teacher_forced(model: nn.Module, shape: Shape, batch: Batch, memory: Tensor | None = None) -> Output:
    """A TagiModel's forward pass on a collated batch, the decoder reading the labels shifted right.

    `model` may be wrapped, as a trainer does where several processes share the work; `shape` is its backbone's,
    `memory` the batch's instructions (T, S, D) where they are encoded already.
    """
    decoder_ids = shift_right(batch.labels, shape.decoder_start_token_id, shape.pad_token_id)
    rows = Rows.of(batch.task_index, batch.instruction_ids.shape[0])
    instruction = (batch.instruction_ids, batch.instruction_mask)
    return model(*instruction, batch.input_ids, batch.input_mask, decoder_ids, rows, memory)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer's files are missing or damaged") from error


def _instruction(instruction: str | Instruction, positives: Positives) -> Instruction:
    if isinstance(instruction, Instruction):
        return instruction
    return Instruction(instruction, tuple(Demonstration(*pair) for pair in positives))


def _card(tagi: Tagi) -> str:
    method = tagi.model.method
    base = None if tagi.config.backbone == BACKBONE else tagi.config.backbone
    under = "The language model lies in `backbone/`." if base is None else f"The language model is {base}."
    use = """from tagi import Tagi

tagi = Tagi.from_pretrained(FOLDER)
adapter = tagi.adapt("What to do, in plain English.")
print(tagi.generate(["An input."], adapter))"""
    if not method.adapts:
        use = """from tagi import Tagi
from tagi.data.types import Instruction

tagi = Tagi.from_pretrained(FOLDER)
print(tagi.solve(Instruction("What to do, in plain English."), ["An input."]))"""
    about = f"Method: {method.title} (`{method.name}`). {under}"
    return card("TAGI checkpoint", about, use, base=base, library_name="tagi", tags=["tagi", "text2text-generation"])
