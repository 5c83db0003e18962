"""The whole config tree: frozen and documented. `config_files` reads and writes it.

A config describes one run. Every field has a default or is required, and unknown keys are refused.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tagi.shapes import named_shape


def _written(place: str) -> str:
    if not place.strip():
        raise ValueError("is empty")
    return place


Positive = Annotated[int, Field(gt=0, lt=1 << 31)]
"""A size or a number of things; torch counts no further in one dimension of most kernels."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What both NumPy (no negative number) and torch (64 bits) can draw from."""
Rate = Annotated[float, Field(ge=0.0)]
Place = Annotated[str, AfterValidator(_written)]
"""A file, a folder or a hub name. Never empty: of no name, the working directory would be made."""
Part = Literal["backbone", "hypernetwork", "fusion"]
ModuleKind = Literal["lora", "prefix", "bottleneck"]
"""What a hypernetwork can write into a language model."""
P3Instruction = Literal["template", "full"]
"""What a hypernetwork reads of P3: the template by itself, or a row's whole prompt, which makes every row a task."""
PromptStyle = Literal["tk", "plain", "t0"]
TeacherKind = Literal["instruct", "lora", "fid"]
"""A model trained with the instruction in the prompt; the bank's LM + Δ_i; FiD-ICL over demonstrations."""
RankNorm = Literal["mean", "sum"]
"""Log-likelihood of a choice by target token, or of all of them together."""


class Frozen(BaseModel):
    """Base of every config: immutable, and an unknown key is an error, as is a number that is none (NaN, infinity)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    share: Literal["layer", "kind"] = "layer"
    """One MLP per attention module (the paper), or one per kind of attention."""
    pool: Literal["query", "mean", "first_last"] = "query"
    """How the flat generator summarises the encoded instruction; the rank-wise one always queries it."""
    instruction_encoder: Literal["lm", "separate"] | None = None
    """The language model's encoder or a trained copy of it reads the instruction; None: `Method.own_encoder` says."""

    @model_validator(mode="after")
    def _rankwise_queries(self) -> Self:
        if self.generator == "rankwise" and self.pool != "query":
            raise ValueError("pool applies to generator=flat only; the rank-wise generator pools by queries")
        return self

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


class CorpusConfig(Frozen):
    """Plain text that a language model is trained on from nothing, and how it is cut into rows."""

    c4: Place | None = None
    """Folder of documents in C4's format."""
    sni: Place | None = None
    """Folder of Super-NaturalInstructions, whose training inputs are read."""
    p3: Place | None = None
    """Folder of P3, whose training inputs are read."""
    max_instances: Positive | None = None
    """Inputs of each training task or template; None means all."""
    overlap: Positive = 13
    """A document that shares so many words in a row with a test row of sni or p3 is dropped."""
    valid_documents: Annotated[int, Field(ge=0)] = 200
    """Documents of C4's validation part that a checkpoint's bits per byte are measured on."""
    length: Annotated[int, Field(ge=8)] = 512
    """Input tokens of a packed row."""
    target_length: Annotated[int, Field(ge=8)] = 128
    """Target tokens of a packed row of span corruption; a row of prefix LM has `length` of them too."""
    density: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the tokens that span corruption hides."""
    mean_span: Annotated[float, Field(ge=1.0)] = 3.0
    """Mean length of a hidden span."""
    adapt: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the steps, the last ones, that are prefix language modelling (LM adaptation)."""

    @model_validator(mode="after")
    def _some_text(self) -> Self:
        if self.c4 is None and self.sni is None and self.p3 is None:
            raise ValueError("names no text; give c4, sni or p3 (folders)")
        return self


class DataConfig(Frozen):
    """Training and validation tasks."""

    source: Literal["micro", "sni", "c4", "p3", "corpus", "text", "mixture"]
    """`corpus`: plain text of several kinds, `corpus`; `text`: tasks over the documents of a folder in C4's format;
    `mixture`: several sources of tasks, `parts`."""
    path: Place | None = None
    """Folder of the data set (sni, c4, p3, text)."""
    parts: dict[str, "DataPart"] = {}
    """Sources that share the turns of a mixture, by any name: `data.parts.NAME.path=…` addresses a field."""
    split: str = "default"
    """A folder of `splits/` (sni); 5, 10, 20, 36 (the default) or all (p3)."""
    part: Literal["train", "test"] = "train"
    """Whose tasks: `test` are the target tasks themselves, for Full FT."""
    only: tuple[str, ...] = ()
    """Only these tasks of that part; empty means all."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Instances at the beginning of every task that are left out, since it is scored on them (part=test)."""
    instruction: P3Instruction = "template"
    """What a hypernetwork reads (p3)."""
    max_instances: Positive | None = 100
    """Instances per training task (sni) or template (p3)."""
    categories: Positive | None = None
    """Only the training tasks of so many categories, those with the most tasks (sni; Table 10: 6, 15, 30, 60)."""
    balance: Literal["task", "category"] = "task"
    """What has equally many turns: every task, or every category, its tasks in turn (sni, p3)."""
    support: Literal["given", "drawn"] = "given"
    """Demonstrations of a training task: the examples that its file gives (Def + 2 Pos), or `prompt.positives` rows of
    its own, drawn anew on every visit and then not asked (A.1's k support beside m query examples, which are
    `training.rows_per_task`); sni. P3's files give none, so that its are always drawn."""
    zero_shot: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a training task's turns on which its demonstrations are left out, where `prompt.positives` shows any."""
    valid_tasks: Annotated[int, Field(ge=0)] = 0
    """Meta-valid tasks held out of training; data sets (p3)."""
    valid_instances: Positive = 10
    """Instances of each meta-valid task that a checkpoint is scored on."""
    compositions: Positive = 2500
    """Two-step compositions in the training set (micro)."""
    single_visits: Positive = 100
    """Turns that each family of single operations has in an epoch, shared by its operations (micro)."""
    max_documents: Positive | None = None
    """Documents of plain text (c4, text); None means all (c4) or the first 10,000 (text)."""
    seed: Seed = 0
    """Seed of the splits and of the generated tasks; the order of training has its own."""
    corpus: CorpusConfig | None = None
    """Plain text (corpus)."""

    @model_validator(mode="after")
    def _has_folder(self) -> Self:
        if (self.source == "corpus") != (self.corpus is not None):
            raise ValueError("corpus: source=corpus and data.corpus belong together")
        if self.source not in ("micro", "corpus", "mixture") and self.path is None:
            raise ValueError(f"data.path is required for source={self.source}")
        if (self.source == "mixture") != bool(self.parts):
            raise ValueError("source=mixture needs parts, and nothing else has any")
        if self.balance == "category" and self.source not in ("sni", "p3"):
            raise ValueError(f"balance=category needs tasks with categories, sni or p3, not source={self.source}")
        if self.zero_shot and self.source in ("c4", "corpus", "mixture"):
            raise ValueError(f"zero_shot is of tasks; source={self.source} has none (a mixture's parts have)")
        if self.support == "drawn" and self.source not in ("sni", "p3"):
            raise ValueError(f"support=drawn draws from a task's own rows, of sni or p3, not source={self.source}")
        if self.part == "test" and not self.skip:
            raise ValueError("part=test trains on the target tasks; skip says how many instances are kept for scoring")
        return self


class DataPart(DataConfig):
    """One source of a mixture."""

    share: Annotated[float, Field(gt=0.0)]
    """Of the turns, relative to the other parts; kept to a thousandth."""

    @model_validator(mode="after")
    def _can_be_mixed(self) -> Self:
        if self.source in ("c4", "mixture"):
            raise ValueError(f"source={self.source} cannot be part of a mixture; micro, sni, p3 and text can")
        if self.part == "test":
            raise ValueError("part=test cannot be part of a mixture")
        return self


DataConfig.model_rebuild()


class TrainingConfig(Frozen):
    """One training stage: optimizer, batches, checkpoints."""

    steps: Positive
    tasks_per_batch: Positive = 8
    rows_per_task: Positive = 8
    optimizer: Literal["adamw", "adamw_rms", "muon", "adafactor"] = "adamw"
    """adamw_rms multiplies each parameter's step by its RMS, which a T5 from random initialisation needs; muon by its
    RMS at the start, and makes the steps of the backbone's matrices orthogonal, which learns faster from nothing."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-4
    hypernetwork_lr_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Learning rate of the generator and of fusion relative to the backbone's `lr`."""
    warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = "linear"
    """After warmup: down to 0 all the way, or (trapezoid) in the last `decay` of the steps only."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    weight_decay: Rate = 0.0
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    accumulation: Positive = 1
    trainable: tuple[Part, ...] = ("hypernetwork", "fusion")
    seed: Seed = 0
    """Seed of random initialisation and of the order of training."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the weights that compute; trained bf16 weights keep fp32 masters in the optimizer. T5 overflows in fp16."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass: a third more time for a fraction of the memory."""
    bucket: Literal["input", "prompt"] = "input"
    """A batch holds rows of similar length: of their inputs, so that all methods see the same batches, or of their
    prompts, which leaves less padding where the instruction is read with every input."""
    packing: bool = False
    """Rows of a batch stand end to end where there is room: the same loss in less time, where prompts are all that
    a T5 reads."""
    instruction_cache_mb: Annotated[int, Field(ge=0)] = 512
    """Memory for encoded instructions that are kept across steps while the backbone is frozen."""
    checkpoint_every: Positive = 500
    keep: Positive = 2
    """Checkpoints that stay, besides the best by `best_metric`."""
    best_metric: Literal["valid_rouge_l", "valid_exact_match"] = "valid_rouge_l"
    log_every: Positive = 10
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


class TeacherConfig(Frozen):
    """The teacher of Eq. 5, which reads (a; b)."""

    kind: TeacherKind
    checkpoint: Place
    """The instruct model, FiD-ICL, or the language model that the bank's LoRAs were trained on."""
    shots: Positive = 16
    """Demonstrations that FiD-ICL reads, drawn anew on every visit of a task; a cache keeps the first visit's (fid)."""
    cache: Place | None = None
    """Folder in which the teacher's logits are kept; None computes them in every step."""
    top_k: Positive | None = None
    """Most likely tokens that a cache keeps beside the tail's mass; None keeps the whole vocabulary."""

    @model_validator(mode="after")
    def _top_k_is_kept(self) -> Self:
        if self.top_k is not None and self.cache is None:
            raise ValueError("top_k applies to a cache only; give teacher.cache as well")
        return self


class ObjectiveConfig(Frozen):
    """L = L_ce + λ1 L_kl + λ2 L_ins (Eq. 6); a term with weight 0 is not computed."""

    labels: bool = True
    """Whether L_ce is part of it."""
    lambda_kl: Rate = 0.0
    """λ1, of distillation from `teacher` (Eq. 5)."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of both distributions in Eq. 5; the term is multiplied by its square."""
    teacher: TeacherConfig | None = None
    lambda_ins: Rate = 0.0
    """λ2, of alignment with the bank's LoRAs (Eq. 4)."""
    align: Literal["delta", "factors"] = "delta"
    """Compare the products ΔW, or A with A and B with B."""

    @property
    def shots(self) -> int:
        """Demonstrations that the teacher reads beside the prompt."""
        return self.teacher.shots if self.lambda_kl and self.teacher is not None and self.teacher.kind == "fid" else 0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not (self.labels or self.lambda_kl or self.lambda_ins):
            raise ValueError("every term is switched off; nothing is left to learn from")
        if self.lambda_kl and self.teacher is None:
            raise ValueError("lambda_kl needs a teacher (teacher.kind, teacher.checkpoint)")
        return self


class BankConfig(Frozen):
    """The teacher LoRAs that stage `teachers` trains (§3.2.2)."""

    group: Literal["category", "task"] = "category"
    """One teacher for each task category, or for each task."""
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    wave: Positive = 32
    """Teachers that train in lock-step at a time."""
    only: tuple[str, ...] = ()
    """Groups to train, into the bank that is there already; empty means all."""

    @property
    def scale(self) -> float:
        """The factor on every LoRA product, alpha / r."""
        return (self.alpha or self.rank) / self.rank


class RunConfig(Frozen):
    """A complete run: `tagi train STAGE --config FILE`."""

    stage: Literal["backbone", "metatrain", "teachers", "pretrain", "finetune"]
    method: str
    """Stage `teachers`: how the language model under the LoRAs reads, `no_instruction` (b) or `metatrain` (a; b). Stage
    `backbone`: `no_instruction`."""
    start_from: Place | None = None
    """A checkpoint of an earlier stage to go on from (pretrain, then finetune)."""
    backbone: BackboneConfig | None = None
    hypernetwork: HypernetworkConfig = HypernetworkConfig()
    fusion: FusionConfig = FusionConfig()
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    training: TrainingConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    teachers: BankConfig = BankConfig()
    bank: Place | None = None
    """A teacher bank: gives a fresh generator its A₀, and L_ins its targets."""
    bank_base: Place | None = None
    """The checkpoint that the bank was trained on, where that is not the language model this run starts from."""
    output: Place

    @property
    def demonstrations(self) -> int:
        """Demonstrations that a training task brings along, for the student or its teacher."""
        return max(self.prompt.positives, self.objective.shots)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.start_from is None) == (self.backbone is None):
            raise ValueError("give either backbone (a fresh start) or start_from (an earlier stage)")
        every = (self.data, *self.data.parts.values())
        if any(data.zero_shot for data in every) and (not self.prompt.positives or self.objective.shots):
            raise ValueError("zero_shot leaves out what prompt.positives shows: give positives, and no fid teacher")
        full = any(data.instruction == "full" for data in every)
        if full and self.training.rows_per_task > 1:
            raise ValueError("data.instruction: with full every row is a task of its own; set training.rows_per_task=1")
        if self.objective.lambda_ins and self.bank is None:
            raise ValueError("objective.lambda_ins needs a teacher bank (bank)")
        return self
