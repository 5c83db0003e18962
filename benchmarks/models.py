"""The models that are measured, and the only uses of tagi's insides: building one, preparing tasks, answering."""

import contextlib
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from benchmarks.timing import Case
from tagi import methods
from tagi.backbones import language_model
from tagi.backbones.base import Prepared
from tagi.backbones.language_model import LanguageModel, save_language_model
from tagi.config import DecoderShape, FusionConfig, HypernetworkConfig, Shape, T5Shape
from tagi.config.files import load, parse
from tagi.config.shapes import named_shape
from tagi.cost.task import Reading, TaskLengths, reading
from tagi.errors import ConfigError
from tagi.infer.merging import LastMerged
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import Limits
from tagi.infer.tasks import Request
from tagi.model import tagi
from tagi.model.tagi import TagiModel

SEED = 0
TOKEN = 3
"""One that means nothing in any shape: what all texts are made of whose tokens do not matter."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MICRO = {"vocab_size": 4000, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4}
"""The shape `micro`: a T5 of 3 + 3 blocks of width 128."""
SMOLLM2 = {
    "vocab_size": 49_152, "d_model": 576, "d_ff": 1536, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
    "head_dim": 64, "max_positions": 8192, "rotary": {"theta": 100_000.0},
    "bos_token_id": 1, "eos_token_ids": (2,), "pad_token_id": 2,
}  # fmt: skip
"""The shape `smollm2-135m`: a decoder-only model, SmolLM2-135M-Instruct."""
QUERIES_AND_VALUES = ["q", "v", "q_proj", "v_proj"]
"""The projections that LoRA adapts, by their names in `transformers`, T5's and those of decoders."""
SYSTEMS = tuple(one.name for one in methods.METHODS if one.name not in ("no_ft", "full_ft"))
"""All that differ when they answer: No FT and Full FT do what metatraining does."""


def shape_of(name: str) -> Shape:
    """The shape of that name, or of a run's file's backbone; a ConfigError names the nearest, or what is missing."""
    if Path(name).suffix in (".yaml", ".yml"):
        backbone = load(Path(name)).backbone
        if backbone is None or (shape := backbone.decoder or backbone.shape) is None:
            raise ConfigError(f"{name}: backbone.shape: is missing")
        return shape
    if name == "smollm2-135m":
        return parse(DecoderShape, SMOLLM2, source="--shape")
    try:
        return parse(T5Shape, MICRO if name == "micro" else named_shape(name), source="--shape")
    except ValueError as error:
        raise ConfigError(f"--shape: {error}") from error


def random_backbone(shape: Shape) -> LanguageModel:
    """A language model of any family with the same random weights for everyone, fp32."""
    backbone = language_model.build(shape)
    language_model.initialise(backbone, torch.Generator().manual_seed(SEED))
    return backbone


def as_transformers(backbone: LanguageModel) -> Any:
    """The same weights as `transformers` holds them, fp32."""
    kind = AutoModelForSeq2SeqLM if backbone.has_encoder else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        save_language_model(backbone, Path(folder))
        return kind.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Setup:
    """Sizes and number format of every model of a benchmark."""

    shape: Shape
    rank: int = 32
    hidden: int = 128
    width: int | None = None
    """Of fusion; None is d_model / 4."""
    dtype: torch.dtype = torch.float32
    generator: Literal["mlp", "states"] = "mlp"

    def models(self, *systems: str) -> list[TagiModel]:
        """Every system around one and the same backbone; a ConfigError where this one can have none such."""
        seed, backbone = torch.Generator().manual_seed(SEED), random_backbone(self.shape)
        bias = "learned" if self.generator == "states" else "fixed"
        writes = HypernetworkConfig(rank=self.rank, hidden=self.hidden, generator=self.generator, bias=bias)
        fusion = FusionConfig(width=self.width)
        models = [TagiModel(backbone, methods.get(name), writes, fusion).eval() for name in systems]
        for model in models:
            tagi.initialise(model, seed)
        return [model.to(self.dtype) for model in models]

    def systems(self) -> list[str]:
        """All that this language model can have."""
        found: list[str] = []
        with torch.device("meta"):
            backbone = language_model.build(self.shape)
            for name in SYSTEMS:
                with contextlib.suppress(ConfigError):
                    TagiModel(backbone, methods.get(name), HypernetworkConfig(), FusionConfig())
                    found.append(name)
        return found

    def transformers(self) -> Any:
        """`transformers`' own model with the weights of that backbone."""
        return as_transformers(random_backbone(self.shape)).to(self.dtype).eval()

    def peft(self, tasks: int = 1) -> Any:
        """That model under a LoRA for every task, see `adapter_names`; a ConfigError where `peft` is not installed."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ConfigError("this comparison needs peft: pip install peft") from error
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=QUERIES_AND_VALUES)
        first, *others = adapter_names(tasks)
        model: Any = get_peft_model(self.transformers(), config, first, autocast_adapter_dtype=False)
        for name in others:
            model.add_adapter(name, config, autocast_adapter_dtype=False)
        return model


def adapter_names(tasks: int) -> list[str]:
    """Of `peft`'s LoRAs; mere numbers it would mistake for those of blocks."""
    return [f"task{number}" for number in range(tasks)]


def instructions(model: TagiModel, task: TaskLengths, tasks: int = 1) -> Tensor:
    """Random ids of what so many tasks say once, (T, S), or (T, E, S) where pieces are encoded apart."""
    reads = reading(model.method, task)
    ids = torch.randint(2, model.backbone.shape.vocab_size, (tasks, reads.once))
    return ids.unflatten(1, (reads.pieces, reads.once // reads.pieces)) if model.method.apart else ids


@torch.inference_mode()
def prepared(model: TagiModel, ids: Tensor, inputs: int, mask: Tensor | None = None) -> Prepared:
    """Tasks ready for so many inputs, as the engine prepares them."""
    adapter = model.adapt(ids, torch.ones_like(ids) if mask is None else mask)
    return LastMerged().prepare(model, adapter, inputs)


def answering(model: TagiModel, ready: Prepared, reads: Reading, batch: int, tokens: int) -> Case:
    """Answers to `batch` inputs, shared evenly by the prepared tasks, in the engine's loop.

    Every answer has `tokens` tokens for every system, whatever its random weights would say.
    """
    prompts = [[TOKEN] * reads.prompt] * reads.prompts
    limits = Limits(model.backbone.end_ids, tokens, tokens)
    each = batch // ready.tasks
    requests = [Request(number, prompts, ready, number // each, "", limits) for number in range(batch)]

    def case() -> None:
        for _ in Scheduler(model.backbone, batch * reads.prompts, eager=False).run(requests):
            pass

    return case


def generating(theirs: Any, ids: Tensor, tokens: int, **more: Any) -> Callable[[], Tensor]:
    """Answers of `transformers` or `peft` to prompts (R, N), all of so many tokens."""

    @torch.inference_mode()
    def case() -> Tensor:
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths, **more)

    return case


def generating_after(theirs: Any, told: Tensor, ids: Tensor, tokens: int) -> Callable[[], Tensor]:
    """Answers of a decoder-only model of `transformers` to inputs (R, N) behind an instruction (1, S), whose keys and
    values are computed now and copied for the rows of every batch."""
    with torch.inference_mode():
        read = theirs(input_ids=told, use_cache=True).past_key_values
    prompts = torch.cat([told.expand(len(ids), -1), ids], dim=1)

    def case() -> Tensor:
        past = copy.deepcopy(read)
        past.batch_repeat_interleave(len(ids))
        return generating(theirs, prompts, tokens, past_key_values=past)()

    return case
