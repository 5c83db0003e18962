"""Rows that hold several texts each, as if every text were a row of its own: how a T5 is trained from scratch."""

from torch import Tensor, nn

from tagi.backbones.attention import padding_bias
from tagi.backbones.base import Prepared
from tagi.backbones.rows import Rows
from tagi.backbones.t5.cache import Inputs
from tagi.backbones.t5.model import T5
from tagi.data.collate import Batch


class PackedT5(nn.Module):
    """A T5 that reads packed rows."""

    def __init__(self, t5: T5) -> None:
        super().__init__()
        self.t5 = t5

    def forward(self, ids: Tensor, owner_RN: Tensor, target_ids: Tensor, target_owner_RO: Tensor) -> Tensor:
        """Logits (R, O, V) of the targets.

        Args:
            ids: (R, N), as `owner_RN`, the text of its row that each token belongs to, from 1; 0 is padding.
            target_ids: (R, O), as `target_owner_RO`.
        """
        alone, rows = Prepared(len(ids), {}), Rows(len(ids), len(ids))
        hidden = self.t5.encode(ids, _same(owner_RN, owner_RN), alone, rows)
        bias = padding_bias(_same(target_owner_RO, owner_RN), hidden.dtype)
        inputs = Inputs(self.t5.cross_key_values(hidden, {}, rows), bias)
        shifted = _shifted(target_ids, target_owner_RO, self.t5.shape.decoder_start_token_id)
        return self.t5.decode(shifted, inputs, alone, rows, seen=_same(target_owner_RO, target_owner_RO))[0]


def packed(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (R, O, V) of a batch of packed rows by a `PackedT5`, wrapped or not."""
    assert batch.packing is not None
    return model(batch.input_ids, batch.packing.input, batch.target_ids, batch.packing.target)


def _shifted(target_ids: Tensor, owner_RO: Tensor, start: int) -> Tensor:
    """Targets to decoder inputs: every text's start token, then all but its last target."""
    shifted = target_ids.roll(1, dims=1)
    shifted[:, 0] = start
    shifted[:, 1:].masked_fill_(owner_RO[:, 1:] != owner_RO[:, :-1], start)
    return shifted


def _same(owner_RO: Tensor, owner_RL: Tensor) -> Tensor:
    """Whether a query and a key belong to the same text, (R, O, L)."""
    return owner_RO[:, :, None] == owner_RL[:, None, :]
