"""Stage `backbone`: a language model learns from packed rows of plain text, without any instruction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tagi import methods
from tagi.backbones.language_model import as_t5
from tagi.backbones.t5.model import T5
from tagi.config import RunConfig
from tagi.data.collate import Batch
from tagi.losses import cross_entropy
from tagi.model.tagi import shift_right
from tagi.pretraining.backbone import check_tokenizer, read_text, text_batches, write_about
from tagi.pretraining.packing import PackedBatch
from tagi.train import optim
from tagi.train.checks import check_stage
from tagi.train.resume import Record
from tagi.train.stage import Metrics, Parts, target_tokens
from tagi.train.start import start
from tagi.train.team import launched


class PackedT5(nn.Module):
    """A language model that reads packed rows."""

    def __init__(self, backbone: T5) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, input_owner: Tensor, labels: Tensor, target_owner: Tensor) -> Tensor:
        """A batch's inputs (R, N) and labels (R, O), and which text each token belongs to, to logits (R, O, V)."""
        shape = self.backbone.shape
        decoder_ids = shift_right(labels, shape.decoder_start_token_id, shape.pad_token_id)
        begins = target_owner[:, 1:] != target_owner[:, :-1]
        decoder_ids[:, 1:].masked_fill_(begins, shape.decoder_start_token_id)
        return self.backbone.packed(input_ids, input_owner, decoder_ids, target_owner)


@dataclass(frozen=True)
class PackedStage:
    """Cross-entropy of all target tokens; `write` and `read` keep checkpoints as every other stage does."""

    model: PackedT5
    parts: Parts
    batches: Callable[[int], PackedBatch]
    write: Callable[[Path], None]
    read: Callable[[Path], None]
    check: Callable[[Path], object] = lambda folder: None
    lanes: None = None

    @property
    def weights(self) -> Mapping[str, float]:
        return {"ce": 1.0}

    def batch(self, index: int) -> PackedBatch:
        return self.batches(index)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"ce": target_tokens(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Metrics:
        assert isinstance(batch, PackedBatch)
        logits = model(batch.input_ids, batch.input_owner, batch.labels, batch.target_owner)
        return {"ce": cross_entropy(logits, batch.labels)}


def build_stage(config: RunConfig) -> PackedStage:
    """Everything that a run of stage `backbone` describes, ready for the trainer.

    Raises:
        TagiError: whatever in the config, the text or the checkpoint does not fit.
    """
    check_stage(config, methods.get(config.method))
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
    reader = PackedT5(as_t5(begin.model.backbone))
    return PackedStage(reader, parts, text_batches(config, text, launched()), write, read, record.check)
