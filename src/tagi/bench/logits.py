"""What a cache of teacher logits loses and takes, against the tokens it keeps (Eq. 5)."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tagi.bench.timing import Progress
from tagi.config import RunConfig
from tagi.data.collate import Batch
from tagi.errors import ConfigError
from tagi.infer.engine import teacher_forced
from tagi.losses import distillation, valid_positions
from tagi.train.build import build_stage
from tagi.train.objectives.distill import BuiltTeacher, Teacher, build_teacher
from tagi.train.objectives.logits import CacheIdentity, LogitCache
from tagi.train.start import start

LossOf = Callable[[Teacher], float]

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


@dataclass(frozen=True, slots=True)
class Kept:
    """One line of the table: loss in nats a token, bytes a target token on disk."""

    k: int
    loss: float
    error: float
    bytes_per_token: float

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


@torch.no_grad()
def against_k(config: RunConfig, batches: int, report: Progress) -> list[Kept]:
    """The distillation loss of a run's student, at the start of the run, from caches of different size.

    The last line keeps the whole vocabulary; its error is the difference to the teacher asked directly.

    Raises:
        ConfigError: the run has no teacher.
    """
    if config.objective.teacher is None:
        raise ConfigError("objective.teacher: this run distils from no teacher")
    config = _one_teacher(config)
    stage, tokenizer = build_stage(config), start(config).tokenizer
    drawn = [stage.batch(number) for number in range(batches)]
    model = stage.model.eval()
    built = build_teacher(config, tokenizer, None, model.backbone.shape.vocab_size)
    logits = [teacher_forced(model, model.backbone.shape, batch).logits for batch in drawn]
    temperature, vocabulary = config.objective.temperature, built.vocabulary

    def loss(teacher: Teacher) -> float:
        terms = [
            distillation(student, teacher(batch), valid_positions(batch.labels), temperature)
            for student, batch in zip(logits, drawn, strict=True)
        ]
        return float(sum(term.total for term in terms) / sum(term.count for term in terms))

    exact = loss(built.teacher)
    lines: list[Kept] = []
    sizes = [k for k in KEPT if k < vocabulary] + [vocabulary]
    for number, k in enumerate(sizes):
        kept = CacheIdentity(teacher=built.identity, temperature=temperature, top_k=k, vocabulary=vocabulary)
        lines.append(_line(kept, built, loss, exact, drawn))
        report(number + 1, len(sizes))
    return lines


def _line(kept: CacheIdentity, built: BuiltTeacher, loss: LossOf, exact: float, drawn: Sequence[Batch]) -> Kept:
    with tempfile.TemporaryDirectory() as folder:
        cache = LogitCache(Path(folder), kept, built.teacher, built.of_task)
        loss(cache)
        cache.flush()
        value = loss(LogitCache(Path(folder), kept, built.teacher, built.of_task))  # read back from disk
        size = cache.bytes_on_disk / sum(batch.targets for batch in drawn)
    return Kept(kept.top_k, value, value - exact, size)


def _one_teacher(config: RunConfig) -> RunConfig:
    """The run with nothing but its teacher, which is asked directly."""
    assert config.objective.teacher is not None
    teacher = config.objective.teacher.model_copy(update={"cache": None, "top_k": None})
    return config.model_copy(
        update={"objective": config.objective.model_copy(update={"teacher": teacher, "lambda_ins": 0.0})}
    )
