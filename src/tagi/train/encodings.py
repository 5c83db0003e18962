"""Encoded instructions that are kept across steps: with a frozen backbone each is a constant (§3.2.1).

Every instruction is encoded alone, unpadded and without dropout, so that its encoding depends neither on the rest
of its batch nor on what is kept. Shapes: T tasks, S instruction tokens, D model width.
"""

from collections import OrderedDict

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from tagi.config import TrainingConfig
from tagi.data.collate import Batch
from tagi.model.tagi import TagiModel

MEBIBYTE = 2**20


class Encodings:
    """Encodes a batch's instructions, keeping the ones used last within `limit` bytes."""

    def __init__(self, model: TagiModel, limit: int) -> None:
        self.model, self.limit = model, limit
        self.kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.bytes = 0

    def __call__(self, batch: Batch) -> Tensor | None:
        """I of every task, (T, S, D), 0 where padded; None where the model's shards meet only in its own forward."""
        if isinstance(self.model, FSDPModule):
            return None
        ids, longest = batch.instruction_ids, batch.instruction_ids.shape[1]
        lengths = batch.instruction_mask.sum(1).tolist()
        each = [self._one(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        return torch.stack([F.pad(hidden, (0, 0, 0, longest - len(hidden))) for hidden in each])

    def _one(self, ids_S: Tensor) -> Tensor:
        key = tuple(ids_S.tolist())
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        hidden = encode_alone(self.model, ids_S)
        self._keep(key, hidden)
        return hidden

    def _keep(self, key: tuple[int, ...], hidden: Tensor) -> None:
        self.kept[key] = hidden
        self.bytes += hidden.nbytes
        while self.bytes > self.limit:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes


@torch.no_grad()
def encode_alone(model: TagiModel, ids_S: Tensor) -> Tensor:
    """I of one instruction, (S, D), without dropout; an instruction without tokens has no encoding."""
    if not len(ids_S):
        return model.backbone.embedding.weight.new_zeros(0, model.backbone.d_model)
    training = model.backbone.training
    model.backbone.eval()
    hidden = model.encode_instruction(ids_S[None], torch.ones_like(ids_S)[None])[0]
    model.backbone.train(training)
    return hidden


def encodings(model: TagiModel, config: TrainingConfig) -> Encodings | None:
    """What encodes the instructions of a run, where they are constants: a frozen backbone encodes them itself."""
    constant = "backbone" not in config.trainable and model.instruction_encoder is None
    if not (constant and model.method.reads_instruction_once):
        return None
    return Encodings(model, config.instruction_cache_mb * MEBIBYTE)
