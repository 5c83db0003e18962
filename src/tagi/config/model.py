"""The language model, what generates adapters for it, and how text becomes what it reads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagi.config.base import Frozen, ModuleKind, Place, Positive, PromptStyle, Target
from tagi.config.shapes import DecoderShape, NamedShape


class HypernetworkConfig(Frozen):
    """The adapter generator of Eq. 2."""

    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    """LoRA scale is alpha / rank; None means alpha = rank."""
    bias: Literal["fixed", "learned"] = "fixed"
    """What is generated is added to A₀ alone, random and never trained, or to one LoRA for all tasks, A₀ and B₀, that
    is learned along."""
    generator: Literal["mlp", "states"] = "mlp"
    """How LoRA is written: A and B by an MLP (Eq. 2); or, in decoder-only models, half of B's columns as the
    projection's own weight on states of the instruction, the other half and A learned for all tasks."""
    prefix: Positive = 32
    """Keys and values that a generated prefix puts before every self-attention."""
    bottleneck: Positive = 64
    """Width of a generated bottleneck adapter."""
    hidden: Positive = 128
    target_modules: Annotated[tuple[Target, ...], Field(min_length=1)] = ("q", "v")
    """The projections of every attention, or of every block, that generated LoRA adapts."""
    instruction_encoder: Literal["lm", "separate"] | None = None
    """Whether the language model reads the instruction, or a trained copy of it; None: `Method.own_encoder` says."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.generator == "states" and (self.rank % 2 or self.bias != "learned"):
            raise ValueError("generator: states needs an even rank and bias: learned")
        return self

    @property
    def scale(self) -> float:
        """The factor on every LoRA product, alpha / r."""
        return (self.alpha or self.rank) / self.rank

    def size(self, kind: ModuleKind) -> int:
        """Rows that are generated for each site: LoRA's rank, a prefix's length, a bottleneck's width."""
        return {"lora": self.rank, "prefix": self.prefix, "bottleneck": self.bottleneck}[kind]


class FusionConfig(Frozen):
    """How inputs meet the encoded instruction; whether they do is the method's choice.

    An encoder-decoder has the cross-attention of Eq. 1; the blocks of a decoder-only model attend to the instruction's
    own keys and values, and that is all.
    """

    width: Positive | None = None
    """Inner width; None means d_model / 4."""
    heads: Positive = 4
    every: Positive = 1
    """A fusion layer in every n-th encoder block."""
    prefix: Literal["base", "adapted"] = "base"
    """Whether a decoder-only model reads the instruction for its inputs without or with the generated modules."""


class PromptConfig(Frozen):
    """How an instruction and an input become text, and how long they may be (tokens)."""

    style: PromptStyle = "tk"
    demonstrations: Annotated[int, Field(ge=0)] = 0
    """Demonstrations shown with the definition: 0 is Def, 2 is Def+2Pos."""
    max_instruction: Positive = 1024
    max_input: Positive = 1024
    max_prompt: Positive | None = None
    """Of instruction and input in one text; None is the sum of their limits."""
    max_target: Positive = 128

    @property
    def longest_prompt(self) -> int:
        """Tokens of instruction and input in one text, at most."""
        return self.max_prompt or self.max_instruction + self.max_input


class BackboneConfig(Frozen):
    """Where the language model comes from: a Hugging Face folder or hub name, or random initialisation."""

    path: Place | None = None
    shape: NamedShape | None = None
    """Of random initialisation; beside `path`, what its weights are expected to be: a dry run needs no more."""
    decoder: DecoderShape | None = None
    """A decoder-only model from random initialisation instead."""
    tokenizer: Place | None = None
    """Of a random backbone: `micro` (the closed microtask vocabulary), `unigram` (trained on the training text), or a
    folder that holds the files of one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is None and self.shape is None and self.decoder is None:
            raise ValueError("give either path (a checkpoint) or shape or decoder (random initialisation)")
        if self.decoder is not None and (self.path is not None or self.shape is not None):
            raise ValueError("decoder is the shape of random initialisation; leave path and shape out")
        if self.path is None and self.tokenizer is None:
            raise ValueError("a backbone from random initialisation needs a tokenizer: micro, unigram or a folder")
        return self
