"""FSDP2: parameters, gradients and optimizer state live in shards, one in each process."""

import os

from torch import nn
from torch.distributed.fsdp import fully_shard

from tagi.model.tagi import TagiModel


def asked_for() -> bool:
    """Whether accelerate's config asks for FSDP; accelerate itself has it on accelerators only."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(model: TagiModel) -> nn.Module:
    """Every parameter of a model becomes a sharded one, in place.

    The language model's blocks are gathered one at a time, the rest for the whole step.
    """
    for block in model.backbone.blocks:
        fully_shard(block)
    fully_shard(model)
    return model
