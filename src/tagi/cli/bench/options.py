"""Options that several benchmarks share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tagi.cli.common import waiting
from tagi.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tagi.bench.models import Setup
    from tagi.config import T5Shape
    from tagi.model.costs import TaskLengths

MICRO = {"vocab_size": 4000, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4}
"""The shape `micro`: 3 + 3 blocks of width 128."""
MOST = 1024
"""Tasks or examples in a batch that a measurement takes, at most."""
BATCHES = (1, 16)
"""Examples at a time, where nothing else is asked for."""

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Super-NaturalInstructions: tasks/ and splits/.")]
ShapeName = Annotated[
    str, typer.Option("--shape", help="micro, a named T5 such as t5-small, or the file of a run, for its backbone.")
]
Shots = Annotated[
    int, typer.Option("--positives", min=0, help="Demonstrations of every task: 0 is Def, 2 is Def+2Pos.")
]
Rank = Annotated[int, typer.Option("--rank", min=1, help="LoRA rank.")]
Width = Annotated[int | None, typer.Option("--width", min=4, help="Width of fusion (default: d_model / 4).")]
Hidden = Annotated[int, typer.Option("--hidden", min=1, help="Hidden width of the adapter generator.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="DIR", help="A tokenizer, folder or hub name (default: trained on the tasks)."),
]
Batches = Annotated[
    list[int] | None, typer.Option("--batch", min=1, max=MOST, help="Examples at a time (default: 1 and 16).")
]
Dtype = Annotated[
    Literal["fp32", "bf16"], typer.Option("--dtype", help="Number format of every model that is compared.")
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Rounds in which the cases take turns.")]


def named(name: str) -> T5Shape:
    """The shape of that name, or of the backbone in a run's file.

    Raises:
        ConfigError: unknown, names the nearest; a file without a shape.
    """
    from tagi.config import T5Shape
    from tagi.config.files import load, parse
    from tagi.config.shapes import named_shape

    if Path(name).suffix in (".yaml", ".yml"):
        backbone = load(Path(name)).backbone
        if backbone is None or backbone.shape is None:
            raise ConfigError(f"{name}: backbone.shape: is missing")
        return backbone.shape

    try:
        return parse(T5Shape, MICRO if name == "micro" else named_shape(name), source="--shape")
    except ValueError as error:
        raise ConfigError(f"--shape: {error}") from error


def setup(shape: str, rank: int, hidden: int, width: int | None, dtype: str) -> Setup:
    """Sizes and number format of the models.

    Raises:
        ConfigError: an unknown shape.
    """
    import torch

    from tagi.bench.models import Setup
    from tagi.config import FusionConfig, HypernetworkConfig

    number = torch.bfloat16 if dtype == "bf16" else torch.float32
    return Setup(named(shape), HypernetworkConfig(rank=rank, hidden=hidden), FusionConfig(width=width), number)


def lengths_of_tasks(data: Path, positives: int, tokenizer: str | None) -> list[TaskLengths]:
    """Token lengths of the benchmark's English test tasks.

    Raises:
        DataError: the data is not there or cannot be used.
    """
    from tagi.bench.tasks import lengths_of
    from tagi.config import PromptConfig
    from tagi.data.sources.sni_files import SniDataset

    dataset, prompt = SniDataset(data), PromptConfig(positives=positives)
    with waiting("reading tasks"):
        names = dataset.english(dataset.names("test"))
        chosen = _tokenizer(tokenizer, data)
        return [lengths_of(dataset.load(name, limit=100), chosen, prompt) for name in names]


def _tokenizer(source: str | None, data: Path) -> PreTrainedTokenizerBase:
    """The tokenizer at hand, or one trained on the benchmark's training tasks."""
    from tagi.backbones.t5.weights import locate
    from tagi.config import BackboneConfig, DataConfig
    from tagi.infer.engine import load_tokenizer
    from tagi.train.start import random_tokenizer

    if source is not None:
        return load_tokenizer(locate(source))
    shape = named("micro").model_copy(update={"vocab_size": 8000})
    config = BackboneConfig(shape=shape, tokenizer="unigram")
    return random_tokenizer(config, shape, DataConfig(source="sni", path=str(data)))
