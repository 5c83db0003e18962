"""Stage `backbone`: a language model learns from packed rows of plain text, without any instruction."""

from pathlib import Path
from typing import cast

from torch import Tensor, nn

from tagi import methods
from tagi.backbones.attention import padding_bias
from tagi.backbones.base import Prepared
from tagi.backbones.rows import Rows
from tagi.backbones.t5.cache import Inputs
from tagi.backbones.t5.model import T5
from tagi.config import RunConfig
from tagi.data.collate import Batch
from tagi.losses import cross_entropy
from tagi.pretraining.backbone import check_tokenizer, read_text, text_batches, write_about
from tagi.pretraining.packing import PackedBatch
from tagi.train import optim
from tagi.train.distributed.team import launched
from tagi.train.resume import Record
from tagi.train.stage import Metrics, Stage
from tagi.train.start import start


class PackedT5(nn.Module):
    """A T5 that reads rows which hold several texts each, as if every text were a row of its own."""

    def __init__(self, backbone: T5) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, input_owner: Tensor, target_ids: Tensor, target_owner: Tensor) -> Tensor:
        """A batch's inputs (R, N) and targets (R, O), and which text of its row each token belongs to, from 1 (0 is
        padding), to logits (R, O, V)."""
        alone, rows = Prepared(len(input_ids), {}), Rows(len(input_ids), len(input_ids))
        hidden = self.backbone.encode(input_ids, _same(input_owner, input_owner), alone, rows)
        bias = padding_bias(_same(target_owner, input_owner), hidden.dtype)
        inputs = Inputs(self.backbone.cross_key_values(hidden, {}, rows), bias)
        shifted = _shifted(target_ids, target_owner, self.backbone.shape.decoder_start_token_id)
        return self.backbone.decode(shifted, inputs, alone, rows, seen=_same(target_owner, target_owner))[0]


class PackedStage(Stage):
    """Cross-entropy of all target tokens; `write` and `read` keep checkpoints as every other stage does."""

    def loss(self, model: nn.Module, batch: Batch) -> Metrics:
        assert isinstance(batch, PackedBatch)
        logits = model(batch.input_ids, batch.input_owner, batch.target_ids, batch.target_owner)
        return {"ce": cross_entropy(logits, batch.labels)}


def build_stage(config: RunConfig) -> PackedStage:
    """All that a run of stage `backbone` describes, ready for the trainer; a TagiError where something does not fit."""
    methods.of(config)
    text = read_text(config)
    begin = start(config, text.tokenizer)
    record = Record.of(config, launched())

    def write(folder: Path) -> None:
        record.write(folder)
        begin.write(folder)
        write_about(text.about, folder)

    def read(folder: Path) -> None:
        check_tokenizer(text, folder)
        begin.read(folder)

    parts = optim.trainable(begin.model, config.training)
    reader = PackedT5(cast(T5, begin.model.backbone))
    return PackedStage(reader, parts, text_batches(config, text, launched()), write, read, record.check)


def _shifted(target_ids: Tensor, owner_RO: Tensor, start: int) -> Tensor:
    """Targets to decoder inputs: every text's start token, then all but its last target."""
    shifted = target_ids.roll(1, dims=1)
    shifted[:, 0] = start
    shifted[:, 1:].masked_fill_(owner_RO[:, 1:] != owner_RO[:, :-1], start)
    return shifted


def _same(owner_RO: Tensor, owner_RL: Tensor) -> Tensor:
    """Whether a query and a key belong to the same text, (R, O, L)."""
    return owner_RO[:, :, None] == owner_RL[:, None, :]
