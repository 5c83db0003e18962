"""A LoRA on its way out of this package: where it comes from, what it leaves behind, and the files it becomes."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import get_args

import torch
from torch import Tensor

from tagi.backbones import gguf
from tagi.backbones.files import locate
from tagi.backbones.language_model import LanguageModel, load_language_model, save_language_model
from tagi.backbones.lora import merged
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors, Site
from tagi.config import Target
from tagi.data import tokenizers
from tagi.data.collate import Batch, assemble
from tagi.data.prompts import INVOCATION
from tagi.data.tokenizers import encode
from tagi.errors import InputError
from tagi.files import atomic_folder
from tagi.infer import asked
from tagi.infer.engine import Tagi
from tagi.losses import Loss, distillation, soften, valid_positions
from tagi.model import bank as banks
from tagi.model import checkpoint
from tagi.model.adapter import TaskAdapter
from tagi.model.cards import CARD, card
from tagi.model.peft_files import save_peft

SAMPLES, LONGEST, SEED = 64, 8, 0
"""Random inputs: how many, of how many tokens at most, and the seed that they are drawn from."""
ROWS = 32


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts to answer, and what they are."""

    texts: Sequence[str]
    source: str


@dataclass(frozen=True, slots=True)
class Lost:
    """What the LoRA alone does otherwise than the whole adapter that it was taken from."""

    same_answers: float
    """Share of the inputs with the same greedy answer."""
    kl: float
    """KL(whole || LoRA alone), nats per target token of the whole adapter's answers."""
    n: int
    inputs: str

    def __str__(self) -> str:
        return (
            f"The encoded instruction stays behind: this is the LoRA alone. On {self.n} inputs ({self.inputs}), "
            f"{self.same_answers:.1%} of its greedy answers are those of the whole adapter, and its mean KL from it is "
            f"{self.kl:.3f} nats per target token."
        )


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before every input, in place of an encoded instruction: an engine keeps its keys and values."""

    text: str
    invocation: tuple[int, ...]
    """Tokens that every input begins with and from which on the LoRA is active; without any it is from the start."""

    def __str__(self) -> str:
        since = f"from the tokens {list(self.invocation)} on (activated LoRA)" if self.invocation else "from the start"
        return (
            f"Nothing is lost where this text stands before every input, which goes on with {INVOCATION!r}, a space "
            f"and the input; the LoRA is active {since}:\n\n```\n{self.text}\n```"
        )


@dataclass(frozen=True, slots=True)
class Export:
    """One task's LoRA, and the language model that it belongs to."""

    lora: Mapping[Site, Factors]
    backbone: LanguageModel
    base: str
    """Folder or hub name of the language model."""
    tokenizer: Path
    """Folder of its tokenizer."""
    fingerprint: str
    about: str
    lost: Lost | None = None
    context: Context | None = None

    @property
    def description(self) -> str:
        """For a model card."""
        return " ".join(str(one) for one in (self.about, self.lost, self.context) if one is not None)


def from_adapter(
    tagi: Tagi, source: Path, base: str, tokenizer: Path, inputs: Inputs | None = None, *, alone: bool = False
) -> Export:
    """The LoRA of a saved adapter, and what an engine must read before its inputs.

    Where the encoded instruction cannot be kept so, what is lost is measured, on random inputs if none are given.

    Args:
        alone: what it becomes has no place for the text to read, or is active there too.

    Raises:
        CheckpointError: see `Tagi.load_adapter`.
        InputError: the adapter holds something else than LoRA.
    """
    adapter = tagi.load_adapter(source)
    lora = tagi.model.lora(adapter)
    _check_lora(lora, source)
    backbone, lost, context = tagi.model.backbone, None, None
    about = f"A task adapter that {tagi.model.method.title} wrote from an instruction."
    if not adapter.origins[0].definition:
        about = "A LoRA that was trained elsewhere."
    if (tagi.model.method.fuses_encoder or tagi.model.method.fuses_decoder) and adapter.instruction.mask.shape[1]:
        context = _context(tagi, adapter)
        if context is None or (alone and context.invocation):
            lost, context = measure(tagi, adapter, inputs or random_inputs(tagi)), None
    return Export(lora, backbone, base, tokenizer, tagi.config.backbone_fingerprint, about, lost, context)


def _context(tagi: Tagi, adapter: TaskAdapter) -> Context | None:
    """What the language model reads of the instruction, as a text; None where an encoder reads it, or where nothing
    says in the tokens where the LoRA begins."""
    told, prompt = asked.read_by(adapter), tagi.config.prompt
    if adapter.instruction.attended is None or told is None or prompt.style != "chat":
        return None
    text = str(tagi.tokenizer.decode(tagi.collator.instruction(told)))
    return Context(text, () if tagi.model.reads_again else tuple(encode(tagi.tokenizer, INVOCATION)))


def from_bank(source: Path, group: str, backbone: str | None) -> Export:
    """The LoRA of one teacher; `backbone` is where its language model lies now, if not where the bank says.

    Raises:
        CheckpointError: no bank, a damaged one, or one of another language model.
        ConfigError: no teacher of that group.
    """
    manifest = banks.read_manifest(source)
    place = backbone or checkpoint.found_again(manifest.base, manifest.base_from_here, source)
    base = checkpoint.base_source(place)
    model = load_language_model(base).eval()
    bank = banks.load(source, model)
    fingerprint = checkpoint.fingerprint(model)
    banks.check(bank, source, fingerprint, manifest.rank, manifest.target_modules)
    about = f"The per-task LoRA of the group {group!r}, trained by gradient on its tasks."
    return Export(bank.teacher(group), model, base, locate(place), fingerprint, about)


def write_peft(export: Export, folder: Path) -> None:
    """PEFT's files, whole or not at all, see `save_peft`."""
    invocation = () if export.context is None else export.context.invocation
    about, own = export.description, export.fingerprint
    save_peft(export.lora, export.backbone, export.base, folder, about, fingerprint=own, invocation=invocation)


def write_gguf(export: Export, folder: Path) -> None:
    """llama.cpp's adapter file with a card, whole or not at all, see `gguf.save_lora`.

    Raises:
        CheckpointError: a language model that llama.cpp's files do not name.
    """
    use = "llama-server -m MODEL.gguf --lora adapter.gguf"
    front = {"tags": ["lora", "gguf", "tagi"]}
    written = card("LoRA in llama.cpp's format", export.description, use, base=export.base, gguf=True, **front)
    invocation = () if export.context is None else export.context.invocation
    # llama.cpp's server (b11549) lets the LoRA begin one token before those that its file names; tests/engines measures
    # from where it is active.
    invocation = invocation[1:] or invocation
    with atomic_folder(folder) as draft:
        gguf.save_lora(export.lora, export.backbone, draft / "adapter.gguf", invocation)
        (draft / CARD).write_text(written, encoding="utf-8")


def write_merged(export: Export, folder: Path) -> None:
    """The language model with the LoRA added into its weights, as `transformers` opens it, whole or not at all.

    Raises:
        CheckpointError: the tokenizer's files are missing.
        DiskError: the disk is full or cannot be written.
    """
    tokenizer, model = tokenizers.load(export.tokenizer), merge(export.backbone, export.lora)
    auto = "AutoModelForSeq2SeqLM" if export.backbone.has_encoder else "AutoModelForCausalLM"
    use = f"""from transformers import {auto}, AutoTokenizer

model, tokenizer = {auto}.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)"""
    about = f"{export.description}\n\nIt is added into the weights of {export.base}: W + scale · B A."
    front = {"library_name": "transformers", "tags": ["tagi"]}
    written = card("A language model with a LoRA merged in", about, use, base=export.base, **front)
    with atomic_folder(folder) as draft:
        save_language_model(model, draft)
        tokenizers.save(tokenizer, draft)
        (draft / CARD).write_text(written, encoding="utf-8")


def merge(backbone: LanguageModel, lora: Mapping[Site, Factors]) -> LanguageModel:
    """A copy of a language model with one task's LoRA added into its weights: W + ΔW.

    Raises:
        ValueError: `lora` holds more than one task, or something else than LoRA.
    """
    copied = copy.deepcopy(backbone)
    weights = copied.site_weights()
    with torch.no_grad():
        for site, factors in merged(lora, weights).items():
            if factors.merged is None:
                raise ValueError(f"{site.place}: only LoRA can be merged into the weights")
            weights[site].copy_(factors.merged)
    return copied


def random_inputs(tagi: Tagi) -> Inputs:
    """Texts of random tokens of the tokenizer, the same at every call."""
    rng, special = Random(SEED), set(tagi.tokenizer.all_special_ids)
    ids = [number for number in range(len(tagi.tokenizer)) if number not in special]
    drawn = (rng.choices(ids, k=rng.randint(1, LONGEST)) for _ in range(SAMPLES))
    texts = [text.strip() for text in tagi.tokenizer.batch_decode(list(drawn))]
    return Inputs([text for text in texts if text], f"random, 1 to {LONGEST} tokens of the vocabulary, seed {SEED}")


def measure(tagi: Tagi, adapter: TaskAdapter, inputs: Inputs) -> Lost:
    """The LoRA alone, without the encoded instruction, against the whole adapter."""
    alone = adapter.without_instruction()
    answers, others = tagi.generate(inputs.texts, adapter), tagi.generate(inputs.texts, alone)
    same = sum(one == other for one, other in zip(answers, others, strict=True))
    pairs = list(zip(inputs.texts, answers, strict=True))
    losses = [_divergence(tagi, adapter, alone, pairs[i : i + ROWS]) for i in range(0, len(pairs), ROWS)]
    kl = float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))
    return Lost(same / len(pairs), kl, len(pairs), inputs.source)


@torch.inference_mode()
def _divergence(tagi: Tagi, whole: TaskAdapter, alone: TaskAdapter, pairs: Sequence[tuple[str, str]]) -> Loss:
    """KL(whole || alone) over the tokens of given answers to inputs."""
    targets = [tagi.collator.target(answer) for _, answer in pairs]

    def read(adapter: TaskAdapter) -> Batch:
        follows = tagi.model.method.fuses_decoder and bool(adapter.instruction.mask.any())
        inputs = [tagi.collator.input(None, text, follows=follows) for text, _ in pairs]
        return assemble([], inputs, targets, torch.zeros(len(pairs), dtype=torch.long)).to(tagi.device)

    def logits(adapter: TaskAdapter) -> Tensor:
        batch, rows = read(adapter), Rows(1, len(pairs))
        return tagi.model.respond(adapter, batch.input_ids, batch.input_mask, batch.target_ids, rows).logits

    labels = read(whole).labels
    return distillation(logits(alone), soften(logits(whole), 1.0), valid_positions(labels), 1.0)


def _check_lora(lora: Iterable[Site], source: Path) -> None:
    found = sorted({site.place for site in lora})
    if not found or not set(found) <= set(get_args(Target)):
        held = " and ".join(found) or "no"
        raise InputError(f"{source}: has {held} modules; only LoRA fits into PEFT's files or a model's weights")
