"""The models that are measured, and the only uses of tagi's insides: building one, preparing tasks, answering."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tagi.infer.compiled import Compiled
from tagi.infer.decode import Request, decode
from torch import Tensor
from transformers import T5ForConditionalGeneration

from benchmarks.lengths import Reading, TaskLengths, reading
from benchmarks.timing import Case
from tagi import methods
from tagi.backbones.rows import Rows
from tagi.backbones.t5 import model as t5
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import save_t5
from tagi.config import FusionConfig, HypernetworkConfig, T5Shape
from tagi.config.files import load, parse
from tagi.config.shapes import named_shape
from tagi.errors import ConfigError
from tagi.infer.answers import at_hand
from tagi.infer.engine import prepare
from tagi.infer.search import Limits
from tagi.model import tagi
from tagi.model.tagi import Prepared, TagiModel

SEED = 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MICRO = {"vocab_size": 4000, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4}
"""The shape `micro`: 3 + 3 blocks of width 128."""
QUERIES_AND_VALUES = ["q", "v", "q_proj", "v_proj"]
"""The projections that LoRA adapts, by their names in `transformers`, T5's and those of decoders."""
SYSTEMS = tuple(one.name for one in methods.METHODS if one.name not in ("no_ft", "full_ft", "decoder_only"))
"""All that differ when they answer: No FT and Full FT do what metatraining does."""


def shape_of(name: str) -> T5Shape:
    """The shape of that name, or of the backbone in a run's file.

    Raises:
        ConfigError: unknown, names the nearest; a file without a shape.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        backbone = load(Path(name)).backbone
        if backbone is None or backbone.shape is None:
            raise ConfigError(f"{name}: backbone.shape: is missing")
        return backbone.shape
    try:
        return parse(T5Shape, MICRO if name == "micro" else named_shape(name), source="--shape")
    except ValueError as error:
        raise ConfigError(f"--shape: {error}") from error


def random_backbone(shape: T5Shape) -> T5:
    """A language model of any family with the same random weights for everyone, fp32."""
    backbone = T5(shape)
    t5.initialise(backbone, torch.Generator().manual_seed(SEED))
    return backbone


def as_transformers(backbone: T5) -> Any:
    """The same weights as `transformers` holds them, fp32."""
    with tempfile.TemporaryDirectory() as folder:
        save_t5(backbone, Path(folder))
        return T5ForConditionalGeneration.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Setup:
    """Sizes and number format of every model of a benchmark."""

    shape: T5Shape
    rank: int = 32
    hidden: int = 128
    width: int | None = None
    """Of fusion; None is d_model / 4."""
    dtype: torch.dtype = torch.float32

    def models(self, *systems: str) -> list[TagiModel]:
        """Every system around one and the same backbone.

        Raises:
            ConfigError: there is no such system; names the nearest.
        """
        seed, backbone = torch.Generator().manual_seed(SEED), random_backbone(self.shape)
        generator, fusion = HypernetworkConfig(rank=self.rank, hidden=self.hidden), FusionConfig(width=self.width)
        models = [TagiModel(backbone, methods.get(name), generator, fusion).eval() for name in systems]
        for model in models:
            tagi.initialise(model, seed)
        return [model.to(self.dtype) for model in models]

    def transformers(self) -> Any:
        """`transformers`' own model with the weights of that backbone."""
        return as_transformers(random_backbone(self.shape)).to(self.dtype).eval()

    def peft(self, tasks: int = 1) -> Any:
        """That model under a LoRA for every task, see `adapter_names`.

        Raises:
            ConfigError: `peft` is not installed.
        """
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
    return prepare(model, model.adapt(ids, torch.ones_like(ids) if mask is None else mask), inputs)


def answering(
    model: TagiModel, ready: Prepared, reads: Reading, batch: int, tokens: int, compiled: Compiled | None = None
) -> Case:
    """Answers to `batch` inputs, shared evenly by the prepared tasks, in the engine's loop.

    Every answer has `tokens` tokens for every system, whatever its random weights would say.
    """
    prompts = [[2] * reads.prompt] * reads.prompts
    limits = Limits(model.backbone.shape.eos_token_id, tokens, tokens)
    each = batch // ready.adapter.tasks
    requests = [Request(number, prompts, ready, number // each, "", limits) for number in range(batch)]

    def case() -> None:
        for _ in decode(model, at_hand(requests), batch, compiled):
            pass

    return case


def steps(model: TagiModel, ready: Prepared, prompts: Tensor) -> Iterator[None]:
    """Reads one task's prompts (R, N) at the first `next`, and answers another token of each at every further one."""
    rows, past = Rows(1, len(prompts)), None
    context = model.encode_input(prompts, torch.ones_like(prompts), ready, rows)
    while True:
        yield
        modules = ready.adapter.modules
        _, past = model.backbone.decode(prompts[:, :1], context, modules=modules, rows=rows, past=past)


def generating(theirs: Any, ids: Tensor, tokens: int, **more: Any) -> Case:
    """Answers of `transformers` or `peft` to prompts (R, N), all of so many tokens."""

    @torch.inference_mode()
    def case() -> object:
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths, **more)

    return case
