"""What every config is made of."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""A projection that LoRA can adapt."""
P3Instruction = Literal["template", "full"]
"""What a hypernetwork reads of P3: the template by itself, or a row's whole prompt, which makes every row a task."""
PromptStyle = Literal["tk", "plain", "t0", "chat"]
TeacherKind = Literal["instruct", "lora", "fid"]
"""A model trained with the instruction in the prompt; the bank's LM + Δ_i; FiD-ICL over demonstrations."""
RankNorm = Literal["mean", "sum"]
"""Log-likelihood of a choice by target token, or of all of them together."""


class Frozen(BaseModel):
    """Base of every config: immutable, and an unknown key is an error, as is a number that is none (NaN, infinity)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
