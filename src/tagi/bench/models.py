"""The models that benchmarks measure: random weights of a given shape, which cost what trained ones cost."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import T5ForConditionalGeneration

from tagi.backbones.language_model import build
from tagi.backbones.t5 import model as t5
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import save_t5
from tagi.config import FusionConfig, HypernetworkConfig, T5Shape
from tagi.methods import Method
from tagi.model import tagi
from tagi.model.costs import as_deep
from tagi.model.tagi import TagiModel

SEED = 0


@dataclass(frozen=True, slots=True)
class Setup:
    """Sizes and number format of every model of a benchmark."""

    shape: T5Shape
    generator: HypernetworkConfig
    fused: FusionConfig = field(default_factory=FusionConfig)
    dtype: torch.dtype = torch.float32

    def models(self, systems: Iterable[Method]) -> list[TagiModel]:
        """Every system around one and the same backbone; a decoder-only one of the same widths and as many blocks."""
        seed, backbone = torch.Generator().manual_seed(SEED), random_backbone(self.shape)
        bases = [(build(as_deep(self.shape), SEED) if one.decoder_only else backbone, one) for one in systems]
        models = [TagiModel(base, method, self.generator, self.fused).eval() for base, method in bases]
        for model in models:
            tagi.initialise(model, seed)
        return [model.to(self.dtype) for model in models]

    def transformers(self) -> Any:
        """`transformers`' own T5 with the weights of that backbone."""
        return as_transformers(random_backbone(self.shape)).to(self.dtype).eval()


def random_backbone(shape: T5Shape) -> T5:
    """The same random weights for everyone, fp32."""
    backbone = T5(shape)
    t5.initialise(backbone, torch.Generator().manual_seed(SEED))
    return backbone


def as_transformers(backbone: T5) -> Any:
    """The same weights as `transformers` holds them, fp32."""
    with tempfile.TemporaryDirectory() as folder:
        save_t5(backbone, Path(folder))
        return T5ForConditionalGeneration.from_pretrained(folder)
