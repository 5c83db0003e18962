"""What of a table is there already: finished stages, scores that were kept, and what the missing stages cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tagi.backbones.gguf import smollm2
from tagi.backbones.language_model import SMOLLM2
from tagi.config import RunConfig
from tagi.config.files import RUN_FILE, load
from tagi.data.sources import Sources
from tagi.errors import CheckpointError
from tagi.files import write_text
from tagi.repro.beds import Entry, Stage
from tagi.repro.tables import Scores
from tagi.train import checkpoints, resume
from tagi.train.measure import data_at_hand, from_limits
from tagi.train.plan import can_be_timed, chunked, plan, seconds_per_step

SCORES, ASKED = "scores.json", "asked.json"


def finished(stage: Stage) -> bool:
    """Whether a stage has come to its end; a CheckpointError where another run has left its output there."""
    config, folder = stage.run, Path(stage.output)
    if stage.stage == "teachers":
        return (folder / checkpoints.FINAL).is_dir()
    if not checkpoints.finished(folder, config.training.steps):
        return False
    if wrong := resume.changes(load(folder / checkpoints.FINAL / RUN_FILE), config):
        raise CheckpointError(f"{folder}: holds another run than this table's ({'; '.join(wrong)}); move it away")
    return True


def place(entry: Entry) -> Path:
    """Where an entry's scores are kept: beside its checkpoints, in a folder named by what was asked."""
    asked = [word.removeprefix("--") for word in entry.evaluation if "/" not in word and word != "--data"]
    return Path(entry.stages[-1].output) / "scores" / "-".join((entry.checkpoint, *asked))


def checkpoint(entry: Entry) -> Path:
    """The checkpoint that is scored."""
    return Path(entry.stages[-1].output) / entry.checkpoint


def kept_scores(entry: Entry) -> Scores | None:
    """The scores of an entry, if they are of this checkpoint and these arguments."""
    folder = place(entry)
    try:
        asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
        scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return scores if asked == _asked(entry) else None


def keep_asked(entry: Entry) -> None:
    """Say, beside scores that were just written, of what they are."""
    write_text(place(entry) / ASKED, json.dumps(_asked(entry), indent=2) + "\n")


def _asked(entry: Entry) -> dict[str, object]:
    return {"arguments": list(entry.evaluation), "checkpoint": resume.digest(checkpoint(entry))}


def hours(missing: Sequence[Stage], every: Sequence[Stage]) -> list[float | None]:
    """How long stages take on this machine; None where no step on their language model can be timed yet.

    Of every language model the first stage whose data and weights are at hand is timed for a few steps. The others are
    taken to be as quick for a token that passes the model, at the lengths that their limits allow.
    """
    outputs, sources = {f"{stage.output}/{checkpoints.FINAL}": stage.run for stage in every}, Sources()
    rates: dict[str, float] = {}
    models = [_language_model(stage.run, outputs) for stage in missing]
    for stage, model in zip(missing, models, strict=True):
        config = stage.run
        if model in rates or config.stage not in ("metatrain", "finetune") or not _at_hand(config):
            continue
        if can_be_timed(config, plan(config, list(outputs.values()), sources=sources)):
            rates[model] = seconds_per_step(config, sources) * config.training.steps / _passed(config)
    return [
        rates[model] * _passed(stage.run) / 3600 if model in rates else None
        for stage, model in zip(missing, models, strict=True)
    ]


def _language_model(config: RunConfig, outputs: Mapping[str, RunConfig]) -> str:
    """What tells a stage's language model from others: the config that it first came from."""
    while config.backbone is None and config.start_from in outputs:
        config = outputs[str(config.start_from)]
    return str(config.start_from) if config.backbone is None else config.backbone.model_dump_json()


def _at_hand(config: RunConfig) -> bool:
    backbone = config.backbone
    path = None if backbone is None else backbone.path
    there = path is None or Path(path).is_dir() or (path == SMOLLM2 and smollm2() is not None)
    return there and data_at_hand(config) and (config.start_from is None or Path(config.start_from).is_dir())


def _passed(config: RunConfig) -> float:
    """Tokens that pass the language model in a whole stage: forward, backward (twice where its weights have gradients),
    and forward in a teacher."""
    found, training = from_limits(config), config.training
    passes = 3 if "backbone" in training.trainable and config.stage != "teachers" else 2
    taught = found.rows * (found.prompt + config.prompt.max_target) if config.objective.lambda_kl else 0.0
    _, chunk, chunks = chunked(config) if config.stage == "teachers" else (None, 1, 1)
    return training.steps * chunk * chunks * (passes * found.tokens + taught)
