"""Instructions that are read once and kept across steps: with a frozen language model each is a constant (§3.2.1).

Every instruction is read alone, unpadded and without dropout, so that what it becomes depends neither on the rest
of its batch nor on what is kept.
"""

from collections import OrderedDict

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tagi.backbones.encoded import EncodedInstruction, stack_encoded
from tagi.config import TrainingConfig
from tagi.data.collate import Batch
from tagi.model.tagi import TagiModel, neutral


class Encodings:
    """Reads a batch's instructions, keeping the ones used last within `limit` bytes."""

    def __init__(self, model: TagiModel, limit: int) -> None:
        self.model, self.limit = model, limit
        self.kept: OrderedDict[tuple[int, ...], EncodedInstruction] = OrderedDict()
        self.bytes = 0

    def __call__(self, batch: Batch) -> EncodedInstruction | None:
        """The instructions of every task, padded; None where the model's shards meet only in its own forward."""
        masks = batch.instruction_mask.bool()
        if isinstance(self.model, FSDPModule) or masks.dim() == 3:
            return None
        each = [self._one(ids[mask]) for ids, mask in zip(batch.instruction_ids, masks, strict=True)]
        return stack_encoded(each)

    @torch.no_grad()
    def _one(self, ids_S: Tensor) -> EncodedInstruction:
        """One instruction (T = 1), read without dropout; one without tokens is empty."""
        key = tuple(ids_S.tolist())
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        model, training = self.model, self.model.training
        model.eval()
        mask = torch.ones_like(ids_S, dtype=torch.bool)[None]
        encoded = model.read(ids_S[None], mask) if len(ids_S) else neutral(model.backbone, 1).instruction
        model.train(training)
        self.kept[key] = encoded
        self.bytes += encoded.nbytes
        while self.bytes > self.limit:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return encoded


def encodings(model: TagiModel, config: TrainingConfig) -> Encodings | None:
    """What reads the instructions of a run, where they are constants: a frozen language model reads them itself."""
    constant = "backbone" not in config.trainable and model.instruction_encoder is None
    if not (constant and model.method.reads_instruction_once):
        return None
    return Encodings(model, config.instruction_cache_mb * 2**20)
