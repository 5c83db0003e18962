"""A complete run."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator

from tagi.config.base import Frozen, Place
from tagi.config.data import DataConfig, SourceName
from tagi.config.model import BackboneConfig, FusionConfig, HypernetworkConfig, PromptConfig
from tagi.config.training import BankConfig, ObjectiveConfig, TrainingConfig

StageName = Literal["backbone", "metatrain", "teachers", "pretrain", "finetune"]
SUITABLE: Mapping[StageName, tuple[SourceName, ...]] = {
    "backbone": ("corpus",),
    "metatrain": ("micro", "sni", "p3", "everyday", "text", "mixture"),
    "teachers": ("micro", "sni", "p3", "everyday"),
    "pretrain": ("c4", "micro"),
    "finetune": ("micro", "sni", "p3", "everyday", "text", "mixture"),
}
"""What every stage can learn from."""


class RunConfig(Frozen):
    """A complete run: `tagi train STAGE --config FILE`."""

    stage: StageName
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
    """A LoRA bank: gives a fresh generator its A₀, and L_ins its targets."""
    bank_base: Place | None = None
    """The checkpoint that the bank was trained on, where that is not the language model this run starts from."""
    output: Place

    @property
    def demonstrations(self) -> int:
        """Demonstrations that a training task brings along, for the student or its teacher."""
        return max(self.prompt.demonstrations, self.objective.shots)

    def continues(self, method: str, hypernetwork: HypernetworkConfig) -> bool:
        """Whether this trains the parts of `start_from` further, which was trained by `method` with `hypernetwork`.
        Otherwise only its language model is kept, and the LoRA that all its tasks share (`StateGenerator.share`).
        """
        return method == self.method and hypernetwork.generator == self.hypernetwork.generator

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.start_from is None) == (self.backbone is None):
            raise ValueError("give either backbone (a fresh start) or start_from (an earlier stage)")
        if self.data.source not in SUITABLE[self.stage]:
            raise ValueError(f"data.source: {self.data.source} does not suit stage {self.stage}")
        every = self.data.by_field.values()
        if any(data.zero_shot for data in every) and (not self.prompt.demonstrations or self.objective.shots):
            raise ValueError(
                "zero_shot leaves out what prompt.demonstrations shows: give demonstrations, and no fid teacher"
            )
        full = any(data.instruction == "full" for data in every)
        if full and self.training.rows_per_task > 1:
            raise ValueError("data.instruction: with full every row is a task of its own; set training.rows_per_task=1")
        if self.objective.lambda_ins and self.bank is None:
            raise ValueError("objective.lambda_ins needs a LoRA bank (bank)")
        return self
