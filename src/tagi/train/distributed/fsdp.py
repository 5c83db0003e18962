"""FSDP2: parameters, gradients and optimizer state live in shards, one in each process."""

import os

from torch import nn
from torch.distributed.fsdp import fully_shard

from tagi.backbones.t5.model import DecoderBlock, EncoderBlock


def asked_for() -> bool:
    """Whether accelerate's config asks for FSDP; accelerate itself has it on accelerators only."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(model: nn.Module) -> nn.Module:
    """Every parameter of a model becomes a sharded one, in place.

    The encoder's blocks and the decoder's feed-forwards are gathered one at a time, the rest for the whole step: the
    decoder's attentions give keys and values outside of their block's forward, where nothing would gather them.
    """
    for module in list(model.modules()):
        if isinstance(module, EncoderBlock):
            fully_shard(module)
        elif isinstance(module, DecoderBlock):
            fully_shard(module.feed_forward)
    fully_shard(model)
    return model
