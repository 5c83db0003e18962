"""How a stage learns, and what its objective is."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagi.config.base import Frozen, Part, Place, Positive, Rate, Seed, Target, TeacherKind


class TrainingConfig(Frozen):
    """One training stage: optimizer, batches, checkpoints."""

    steps: Positive
    tasks_per_batch: Positive = 8
    rows_per_task: Positive = 8
    optimizer: Literal["adamw", "adamw_rms", "muon", "adafactor"] = "adamw"
    """adamw_rms multiplies each parameter's step by its RMS, which a T5 from random initialisation needs; muon by its
    RMS at the start, and makes the steps of the backbone's matrices orthogonal, which learns faster from scratch."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-4
    hypernetwork_lr_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Learning rate of the generator and of fusion relative to the backbone's `lr`."""
    warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    schedule: Literal["constant", "linear", "warmup_stable_decay"] = "linear"
    """After warmup: down to 0 all the way, or (warmup_stable_decay) in the last `decay` of the steps only."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    accumulation: Positive = 1
    trainable: tuple[Part, ...] = ("hypernetwork", "fusion")
    seed: Seed = 0
    """Seed of random initialisation and of the order of training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the weights that compute; trained bf16 weights keep fp32 masters in the optimizer."""
    activation_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass: a third more time for a fraction of the memory."""
    bucket: Literal["input", "prompt"] = "input"
    """A batch holds rows of similar length: of their inputs, so that all methods see the same batches, or of their
    prompts, which leaves less padding where the instruction is read with every input."""
    instruction_cache_mb: Annotated[int, Field(ge=0)] = 512
    """Memory for encoded instructions that are kept across steps while the backbone is frozen."""
    checkpoint_every: Positive = 500
    keep: Positive = 2
    """Checkpoints that stay, besides the best."""


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
    """The per-task LoRAs that stage `teachers` trains (§3.2.2)."""

    group: Literal["category", "task"] = "category"
    """One teacher for each task category, or for each task."""
    rank: Positive = 32
    target_modules: Annotated[tuple[Target, ...], Field(min_length=1)] = ("q", "v")
    """The projections that are adapted."""
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    parallel: Positive = 32
    """LoRAs that train in lock-step at a time."""
    only: tuple[str, ...] = ()
    """Groups to train, into the bank that is there already; empty means all."""

    @property
    def scale(self) -> float:
        """The factor on every LoRA product, alpha / r."""
        return (self.alpha or self.rank) / self.rank
