"""Text in, text out: the engine that `run`, `eval`, in-training evaluation and a server share."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tagi import hub
from tagi.backbones.base import Prepared
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.files import locate
from tagi.backbones.rows import Rows
from tagi.bundled import default_checkpoint
from tagi.config import RankNorm
from tagi.data import tokenizers
from tagi.data.collate import Batch, Collator
from tagi.data.types import Instruction
from tagi.errors import CheckpointError, InputError
from tagi.files import atomic_folder, check_replaceable, read_whole
from tagi.infer import asked, notes
from tagi.infer.answers import Answer, AnswerTexts, raised, seeded
from tagi.infer.cards import checkpoint_card
from tagi.infer.choices import TokenScore, score, token_scores
from tagi.infer.merging import LastMerged
from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GREEDY, GenerationConfig, Limits
from tagi.infer.task import TaskFunction
from tagi.infer.tasks import Request
from tagi.model import adapter as adapters
from tagi.model import checkpoint
from tagi.model.adapter import Origin, TaskAdapter
from tagi.model.cards import CARD
from tagi.model.peft_files import is_peft, load_peft
from tagi.model.tagi import Output, TagiModel, neutral

Pairs = Sequence[tuple[str, str]]
Prompts = Sequence[str] | Sequence[tuple[int, ...]]
"""Inputs, or token ids that are read as they stand right behind what inputs are solved by."""
Told = str | Instruction | Sequence[str | Instruction] | TaskAdapter
"""What inputs are solved by: an instruction, several, or the adapters that were written from them."""


class Tagi:
    """A model that reads an instruction once, writes a task adapter, and solves inputs with it.

    Examples:
        >>> tagi = Tagi.from_pretrained()
        >>> adapter = tagi.adapt("Name the city in the text.")
        >>> tagi.generate(["We met in Oslo last May."], adapter)
        ['Oslo']
    """

    def __init__(self, model: TagiModel, tokenizer: PreTrainedTokenizerBase, config: checkpoint.ModelConfig) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizers.without_limits(tokenizer), config
        self.collator = Collator(tokenizer, config.prompt, model.method, joined=not model.backbone.has_encoder)
        self.texts = AnswerTexts(self.tokenizer)
        self._fingerprint: str | None = None
        self._merged = LastMerged()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        backbone: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Open a TAGI checkpoint: a folder or a hub name, or the bundled one.

        Args:
            backbone: where the frozen language model lies now, if not where the checkpoint says.
            device: by default the GPU where there is one.
            dtype: of all weights; by default the one that the language model is loaded in.

        Raises:
            CheckpointError: no checkpoint, half-written, damaged, of another backbone, or with a tokenizer that does
                not fit it.
        """

        chosen = default_checkpoint() if source is None else source

        def read() -> Self:
            loaded = checkpoint.load(locate(chosen), backbone=backbone)
            made = cls(loaded.model, tokenizers.load(loaded.folder, loaded.model.backbone.shape), loaded.config)
            made._fingerprint = loaded.fingerprint  # of the values as written: adapters work at any precision
            return made

        opened = read_whole(Path(chosen), read)
        opened.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
        return opened

    def showing(self, demonstrations: int) -> Self:
        """The same model, instructions shown with up to so many demonstrations: 0 is Def, 2 is Def+2Pos."""
        self.fingerprint()  # once for both
        made = copy.copy(self)
        prompt = self.config.prompt.model_copy(update={"demonstrations": demonstrations})
        made.config = self.config.model_copy(update={"prompt": prompt})
        made.collator = replace(self.collator, prompt=prompt)
        return made

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the checkpoint whole or not at all, in the place of one that lies there already; a frozen backbone is
        kept by reference, not copied.

        Raises:
            DiskError: something else lies there, or the disk is full or cannot be written.
        """
        check_replaceable(Path(folder), checkpoint.CONFIG, checkpoint.KIND)
        with atomic_folder(Path(folder)) as draft:
            checkpoint.write(self.model, self.config, draft, dtype=dtype)
            tokenizers.save(self.tokenizer, draft)
            (draft / CARD).write_text(checkpoint_card(self.model.method, self.config.backbone), encoding="utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, see `tagi.hub.push`."""
        return hub.push(self.save_pretrained, repo_id, **options)

    @torch.inference_mode()
    def adapt(self, instruction: str | Instruction, demonstrations: Pairs = ()) -> TaskAdapter:
        """Instruction in, task adapter out: one pass of the language model and the generator, no gradient.

        Args:
            demonstrations: inputs with their outputs, all of which are shown, whatever the prompts show otherwise.

        Raises:
            InputError: the instruction is empty or no text, or this method has no adapters.
        """
        own = self.showing(len(demonstrations)) if demonstrations else self
        return own.adapt_all([asked.instruction(instruction, demonstrations)])

    def task(self, instruction: str | Instruction, demonstrations: Pairs = ()) -> TaskFunction:
        """A task as a function of its inputs; errors as of `adapt`."""
        return TaskFunction(self, self.adapt(instruction, demonstrations))

    @torch.inference_mode()
    def adapt_all(self, instructions: Sequence[str | Instruction]) -> TaskAdapter:
        """The adapters of several tasks, stacked; errors as of `adapt`."""
        each = asked.instructions(instructions)
        if not self.model.method.adapts:
            raise InputError(f"method {self.model.method.name} reads the instruction with every input: no adapter")
        return replace(self._adapt(each), origins=tuple(map(self._origin, each)))

    @torch.inference_mode()
    def _adapt(self, instructions: Sequence[Instruction]) -> TaskAdapter:
        ids, mask = self.collator.instructions(instructions)
        return self.model.adapt(ids.to(self.device), mask.to(self.device))

    def generate(
        self,
        inputs: Sequence[str],
        adapter: TaskAdapter,
        *,
        tasks: Sequence[int] | None = None,
        generation: GenerationConfig = GREEDY,
    ) -> list[str]:
        """Solve inputs with an adapter; `tasks` names each input's own where several are stacked.

        Raises:
            InputError: no list of inputs, an empty one among them, no adapter, tasks that do not fit; or, once all
                others are answered, see `answer`.
        """
        checked = asked.adapter(adapter)
        return [answer.text for answer in self.answer(checked, inputs, tasks=tasks, generation=generation)]

    def solve(
        self, instruction: str | Instruction, inputs: Sequence[str], *, generation: GenerationConfig = GREEDY
    ) -> list[str]:
        """Inputs of one task by whatever this method does with an instruction: adapter or prompt."""
        told = asked.instruction(instruction)
        return [answer.text for answer in self.answer(told, inputs, generation=generation)]

    def answer(
        self,
        told: Told,
        inputs: Prompts,
        *,
        tasks: Sequence[int] | None = None,
        generation: GenerationConfig = GREEDY,
        progress: Callable[[int, int], None] | None = None,
        keep_errors: bool = False,
    ) -> list[Answer]:
        """Like `solve` and `generate`, each answer with why it ended, in the order of the inputs.

        Args:
            tasks: of several instructions or adapters each input's own.
            progress: called with answers done and answers in all.
            keep_errors: give what went wrong with an input in its place, instead of raising the first of it once all
                other inputs are answered.

        Raises:
            InputError: see `generate`; an input is longer than the model can read, or the model's scores for it are
                no numbers.
        """
        requests = self._requests(told, inputs, tasks, generation)
        tokens: list[list[int]] = [[] for _ in requests]
        ends: dict[int, Tokens] = {}
        # those of as many rows together, those of similar length side by side
        ordered = sorted(requests, key=lambda one: (one.rows, max(map(len, one.prompts))))
        for step in Scheduler(self.model.backbone, eager=False).run(ordered):
            tokens[step.number] += step.new
            if step.done:
                ends[step.number] = step
                if progress is not None:
                    progress(len(ends), len(requests))
        answers = [
            self.texts.answer(own, ends[i].finish_reason, generation.stop, ends[i].error)
            for i, own in enumerate(tokens)
        ]
        return answers if keep_errors else raised(answers)

    def stream(
        self, told: str | Instruction | TaskAdapter, text: str, *, generation: GenerationConfig = GREEDY
    ) -> Iterator[str]:
        """The answer to one input, piece by piece as it grows: together they are what `answer` gives.

        Beam search gives it as a whole. Errors as of `answer`.
        """
        requests = self._requests(told, [asked.text(text, "the input")], None, generation)
        return self._streamed(requests, generation.stop)

    def _streamed(self, requests: Sequence[Request], stop: Sequence[str]) -> Iterator[str]:
        tokens: list[int] = []
        shown = 0
        for step in Scheduler(self.model.backbone).run(requests):
            if step.error is not None:
                raise step.error
            tokens += step.new
            settled = self.texts.settled(tokens, stop)
            if step.finish_reason is not None:
                settled = self.texts.answer(tokens, step.finish_reason, stop).text
            if len(settled) > shown:
                yield settled[shown:]
                shown = len(settled)

    @torch.inference_mode()
    def score_choices(
        self,
        told: str | Instruction | TaskAdapter | None,
        inputs: Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        norm: RankNorm = "mean",
    ) -> list[list[float]]:
        """Log-likelihood of every choice of every input of one task, in nats, a token or in all; told nothing, by the
        bare model.

        Args:
            choices: of all inputs, or of each.

        Raises:
            InputError: no input, instruction or adapter, or choices that are missing or empty.
        """
        inputs = asked.inputs(inputs)
        each = asked.choices(choices, len(inputs))
        adapter, prompts, _ = self.read(self.neutral() if told is None else asked.told(told), inputs)
        answers = [[self.collator.target(choice) for choice in own] for own in each]
        return score(self.model.backbone, self.prepare(adapter, len(inputs)), prompts, answers, norm)

    @torch.inference_mode()
    def token_scores(
        self, adapter: TaskAdapter, given: str | Sequence[int], answer: Sequence[int], *, most: int = 0
    ) -> list[TokenScore]:
        """Every token of an answer to an input, or of what follows token ids that are read as they stand right behind
        the task's instruction; each with so many of the likeliest in its place."""
        prompt = self.read(adapter, asked.inputs([given]))[1][0][0] if isinstance(given, str) else given
        return token_scores(self.model.backbone, self.prepare(adapter, 1), prompt, answer, most)

    @torch.inference_mode()
    def _requests(
        self,
        told: Told,
        inputs: Prompts,
        tasks: Sequence[int] | None,
        generation: GenerationConfig,
    ) -> list[Request]:
        told, inputs, generation = asked.told(told), asked.prompts(inputs), asked.generation(generation)
        adapter, prompts, owners = self.read(told, inputs, tasks)
        prepared, limits = self.prepare(adapter, len(prompts)), self.limits(generation)
        seeds = seeded(generation.seed, inputs)
        return [
            Request(number, each, prepared, task, seed, limits, generation)
            for number, (each, task, seed) in enumerate(zip(prompts, owners, seeds, strict=True))
        ]

    def read(
        self, told: Sequence[Instruction] | TaskAdapter, inputs: Prompts, tasks: Sequence[int] | None = None
    ) -> tuple[TaskAdapter, list[list[list[int]]], list[int]]:
        """The adapters, every input's prompts, and which adapter each has."""
        adapter = told if isinstance(told, TaskAdapter) else self._adapt(told)
        shown = [None] * adapter.tasks if isinstance(told, TaskAdapter) else told
        owners = asked.owners(tasks, adapter.tasks, len(inputs))
        attended = adapter.instruction.attended
        follows = [False] * adapter.tasks if attended is None else attended.mask.any(1).tolist()
        prompts = [
            self.prompts(shown[owner], text, follows=follows[owner]) if isinstance(text, str) else [list(text)]
            for text, owner in zip(inputs, owners, strict=True)
        ]
        return adapter, prompts, owners

    def limits(self, generation: GenerationConfig) -> Limits:
        """Where answers end, besides the model's own positions."""
        most = generation.max_new_tokens or self.config.prompt.max_target
        stopped = partial(self.texts.stopped, stop=generation.stop) if generation.stop else None
        return Limits(self.model.backbone.end_ids, most, generation.min_new_tokens, stopped)

    @torch.inference_mode()
    def prepare(self, adapter: TaskAdapter, inputs: int) -> Prepared:
        """What so many inputs share, see `LastMerged`.

        Raises:
            CheckpointError: another checkpoint wrote the adapter.
        """
        self._check_own(adapter, "the adapter")
        return self._merged.prepare(self.model, adapter, inputs)

    def prompts(self, instruction: Instruction | None, text: str, *, follows: bool = False) -> list[list[int]]:
        """Token ids of everything that the language model reads to answer one input: one prompt, or one for each
        demonstration where predictions are averaged."""
        return self.collator.prompts(instruction, text, follows=follows)

    def neutral(self, tasks: int = 1) -> TaskAdapter:
        """The adapter that changes nothing: the bare model."""
        return neutral(self.model.backbone, tasks)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.backbone.embedding.weight.device

    def notes(
        self, instruction: Instruction | None, inputs: Sequence[str], numbers: Sequence[int] | None = None
    ) -> list[str]:
        """What a person should know before trusting the answers, see `tagi.infer.notes`.

        Args:
            numbers: what the inputs are called, if not 1, 2, and so on.
        """
        return notes.of(self.collator, instruction, inputs, numbers or range(1, len(inputs) + 1))

    def load_adapter(self, source: str | Path) -> TaskAdapter:
        """What `TaskAdapter.save_pretrained` wrote with this same checkpoint, or a LoRA in PEFT's files, used without
        an encoded instruction; a folder or a hub name.

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
            file, attends = folder / adapters.WEIGHTS, self.model.method.fuses_decoder
            adapters.check_fits(adapter, self.model.backbone, file, attends=attends, summaries=self.model.summaries)
        return adapter.to(self.device, self.model.backbone.embedding.weight.dtype)

    def fingerprint(self) -> str:
        """Hash of everything that an adapter depends on, backbone and trained parts; taken once, when a checkpoint is
        opened, or at the first call."""
        if self._fingerprint is None:
            self._fingerprint = checkpoint.fingerprint(self.model)
        return self._fingerprint

    def _origin(self, instruction: Instruction) -> Origin:
        demonstrations = tuple((one.input, one.output) for one in instruction.demonstrations)
        return Origin(
            checkpoint=self.fingerprint(),
            method=self.config.method,
            definition=instruction.definition,
            demonstrations=demonstrations,
        )

    def _check_own(self, adapter: TaskAdapter, name: str | Path) -> None:
        for origin in adapter.origins:
            if origin.checkpoint != self.fingerprint():
                raise CheckpointError(
                    f"{name}: another checkpoint wrote it (fingerprint {origin.checkpoint}, not {self.fingerprint()})"
                )


def teacher_forced(
    model: nn.Module, batch: Batch, encoded: EncodedInstruction | None = None, *, checkpointing: bool = False
) -> Output:
    """A TagiModel's forward pass on a collated batch.

    `model` may be wrapped, as a trainer does where several processes share the work; `encoded` are the batch's
    instructions where they are read already.
    """
    rows = Rows.of(batch.task_index, batch.instruction_ids.shape[0])
    instruction = (batch.instruction_ids, batch.instruction_mask)
    return model(*instruction, batch.input_ids, batch.input_mask, batch.target_ids, rows, encoded, checkpointing)
