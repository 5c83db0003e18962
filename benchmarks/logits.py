"""Show what a cache of teacher logits loses and takes, against the tokens that it keeps (Eq. 5)."""

import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from benchmarks.command import Rows, parser, run, show
from tagi.cli.common import waiting
from tagi.config import RunConfig
from tagi.config.files import load
from tagi.errors import ConfigError
from tagi.infer.engine import teacher_forced
from tagi.losses import distillation, valid_positions
from tagi.train.build import build_stage
from tagi.train.objectives.distill import Teacher, build_teacher
from tagi.train.objectives.logits import CacheIdentity, LogitCache
from tagi.train.start import start

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


@torch.no_grad()
def against_kept(config: RunConfig, batches: int) -> Rows:
    """The distillation loss of a run's student at the start of the run, in nats a token, from caches of different size.

    The last row keeps the whole vocabulary; errors are the difference to the teacher asked directly, and
    a run without one is a ConfigError.
    """
    if config.objective.teacher is None:
        raise ConfigError("objective.teacher: this run distils from no teacher")
    asked_directly = config.objective.teacher.model_copy(update={"cache": None, "top_k": None})
    objective = config.objective.model_copy(update={"teacher": asked_directly, "lambda_ins": 0.0})
    config = config.model_copy(update={"objective": objective})
    stage = build_stage(config)
    model, drawn = stage.model.eval(), [stage.batch(number) for number in range(batches)]
    built = build_teacher(config, start(config).tokenizer, None, model.backbone.shape.vocab_size)
    logits = [teacher_forced(model, batch).logits for batch in drawn]
    temperature, vocabulary = config.objective.temperature, built.vocabulary

    def loss(teacher: Teacher) -> float:
        terms = [
            distillation(student, teacher(batch), valid_positions(batch.labels), temperature)
            for student, batch in zip(logits, drawn, strict=True)
        ]
        return float(sum(term.total for term in terms) / sum(term.count for term in terms))

    exact, rows = loss(built.teacher), list[dict[str, float]]()
    targets = sum(batch.targets for batch in drawn)
    for k in [*(k for k in KEPT if k < vocabulary), vocabulary]:
        kept = CacheIdentity(teacher=built.identity, temperature=temperature, top_k=k, vocabulary=vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            cache = LogitCache(Path(folder), kept, built.teacher, built.of_task)
            loss(cache)
            cache.flush()
            value = loss(LogitCache(Path(folder), kept, built.teacher, built.of_task))  # read back from disk
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        rows.append({"tokens kept": k, "loss": value, "error": value - exact, "bytes a target token": size / targets})
    return rows


def main(asked: Namespace) -> None:
    """Compare caches of different size."""
    with waiting("comparing"):
        rows = against_kept(load(asked.config, asked.overrides), asked.batches)
    show(asked, [], {"cached teacher logits": rows})


OPTIONS = parser(__doc__, batches=8)
OPTIONS.add_argument("--config", type=Path, required=True, help="a run that distils from a teacher")
OPTIONS.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config fields to set")
if __name__ == "__main__":
    run(main, OPTIONS)
