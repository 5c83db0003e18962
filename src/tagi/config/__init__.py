"""The whole config tree: frozen and documented. `files` reads and writes it.

A config describes one run. Every field has a default or is required, and unknown keys are refused.
"""

from tagi.config.base import (
    Frozen,
    ModuleKind,
    P3Instruction,
    Part,
    Positive,
    PromptStyle,
    RankNorm,
    Target,
    TeacherKind,
)
from tagi.config.data import CorpusConfig, DataConfig, DataPart
from tagi.config.model import BackboneConfig, FusionConfig, HypernetworkConfig, PromptConfig
from tagi.config.run import RunConfig
from tagi.config.shapes import DecoderShape, Learned, Rotary, Shape, T5Shape
from tagi.config.training import BankConfig, ObjectiveConfig, TeacherConfig, TrainingConfig

__all__ = [
    "BackboneConfig",
    "BankConfig",
    "CorpusConfig",
    "DataConfig",
    "DataPart",
    "DecoderShape",
    "Frozen",
    "FusionConfig",
    "HypernetworkConfig",
    "Learned",
    "ModuleKind",
    "ObjectiveConfig",
    "P3Instruction",
    "Part",
    "Positive",
    "PromptConfig",
    "PromptStyle",
    "RankNorm",
    "Rotary",
    "RunConfig",
    "Shape",
    "T5Shape",
    "Target",
    "TeacherConfig",
    "TeacherKind",
    "TrainingConfig",
]
