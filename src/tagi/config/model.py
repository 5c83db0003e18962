"""The language model, what generates adapters for it, and how text becomes what it reads."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tagi.config.base import Frozen, ModuleKind, Place, Positive, PromptStyle
from tagi.config.shapes import named_shape


class T5Shape(Frozen):
    """Architecture of a T5 backbone; the three code paths of the family are points in this space."""

    vocab_size: Positive
    d_model: Positive = 128
    d_kv: Positive = 16
    d_ff: Positive = 512
    num_layers: Positive = 3
    num_decoder_layers: Positive = 3
    num_heads: Positive = 8
    relative_attention_num_buckets: Positive = 32
    relative_attention_max_distance: Positive = 128
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    layer_norm_epsilon: float = 1e-6
    activation: Literal["relu", "gelu_new", "gelu", "silu"] = "relu"
    gated: bool = False
    tied: bool = True
    """Whether the output projection is the embedding matrix itself (v1.0) or a matrix of its own (v1.1)."""
    scale_outputs: bool = True
    """Whether decoder outputs are multiplied by d_model^-0.5 before the output projection (v1.0)."""
    pad_token_id: int = 0
    eos_token_id: int = 1
    more_eos_token_ids: tuple[int, ...] = ()
    """Further tokens that end an answer; what is trained on ends in the first."""
    decoder_start_token_id: int = 0

    @model_validator(mode="after")
    def _gated_gelu(self) -> Self:
        if self.gated and self.activation == "gelu":
            raise ValueError("activation: the family's gated GELU is gelu_new; its files cannot say otherwise")
        return self

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv


class CausalShape(Frozen):
    """Architecture of a decoder-only language model, as `transformers` builds it."""

    architecture: Literal["gpt2", "opt"]
    vocab_size: Positive
    d_model: Positive = 128
    d_ff: Positive = 512
    num_layers: Positive = 6
    num_heads: Positive = 4
    max_positions: Positive = 1024
    """Tokens of prompt and answer together, at most."""
    d_embedding: Positive | None = None
    """Width of the token embeddings where it is not `d_model` (OPT 350M)."""
    dropout_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    """Stands between prompt and answer."""

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.d_model

    @property
    def num_decoder_layers(self) -> int:
        """Layers that a token of an answer passes: all."""
        return self.num_layers


Shape = T5Shape | CausalShape
"""Of a language model of any family."""


class HypernetworkConfig(Frozen):
    """The adapter generator of Eq. 2."""

    generator: Literal["rankwise", "flat"] = "rankwise"
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    """LoRA scale is alpha / rank; None means alpha = rank."""
    prefix: Positive = 32
    """Keys and values that a generated prefix puts before every self-attention."""
    bottleneck: Positive = 64
    """Width of a generated bottleneck adapter."""
    hidden: Positive = 128
    instruction_encoder: Literal["lm", "separate"] | None = None
    """The language model's encoder or a trained copy of it reads the instruction; None: `Method.own_encoder` says."""

    @property
    def scale(self) -> float:
        """The factor on every LoRA product, alpha / r."""
        return (self.alpha or self.rank) / self.rank

    def size(self, kind: ModuleKind) -> int:
        """Rows that are generated for each site: LoRA's rank, a prefix's length, a bottleneck's width."""
        return {"lora": self.rank, "prefix": self.prefix, "bottleneck": self.bottleneck}[kind]


class FusionConfig(Frozen):
    """How the cross-attention of Eq. 1 is built; whether it is there is the method's choice."""

    width: Positive | None = None
    """Inner width; None means d_model / 4."""
    heads: Positive = 4
    every: Positive = 1
    """A fusion layer in every n-th encoder block."""


class PromptConfig(Frozen):
    """How an instruction and an input become text, and how long they may be (tokens)."""

    style: PromptStyle = "tk"
    positives: Annotated[int, Field(ge=0)] = 0
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


NamedShape = Annotated[T5Shape, BeforeValidator(lambda shape: named_shape(shape) if isinstance(shape, str) else shape)]
"""A mapping, or the name of a published shape such as t5-v1_1-base."""


class BackboneConfig(Frozen):
    """Where the language model comes from: a Hugging Face folder or hub name, or random initialisation."""

    path: Place | None = None
    shape: NamedShape | None = None
    """Of random initialisation; beside `path`, what its weights are expected to be: a dry run needs no more."""
    causal: CausalShape | None = None
    """A decoder-only model from random initialisation instead."""
    tokenizer: Place | None = None
    """Of a random backbone: `micro` (the closed microtask vocabulary), `unigram` (trained on the training text), or a
    folder that holds the files of one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is None and self.shape is None and self.causal is None:
            raise ValueError("give either path (a checkpoint) or shape or causal (random initialisation)")
        if self.causal is not None and (self.path is not None or self.shape is not None):
            raise ValueError("causal is the shape of random initialisation; leave path and shape out")
        if self.path is None and self.tokenizer is None:
            raise ValueError("a backbone from random initialisation needs a tokenizer: micro, unigram or a folder")
        return self
