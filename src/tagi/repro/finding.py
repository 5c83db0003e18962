"""What of a table is there already: finished stages, scores that were kept, and what the missing stages cost."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagi.config import RunConfig
from tagi.data.sources import Sources
from tagi.errors import CheckpointError
from tagi.files import write_text
from tagi.repro.beds import Entry, Stage
from tagi.repro.tables import Scores
from tagi.train import checkpoints, resume
from tagi.train.plan import Plan, can_be_timed, plan, seconds_per_step

Report = Callable[[int, int], None]
SCORES, ASKED = "scores.json", "asked.json"


def finished(stage: Stage) -> bool:
    """Whether a stage has come to its end.

    Raises:
        CheckpointError: another run has left its output there.
    """
    config, folder = stage.run, Path(stage.output)
    if stage.stage == "teachers":
        return (folder / checkpoints.FINAL).is_dir()
    if not checkpoints.finished(folder, config.training.steps):
        return False
    if wrong := resume.differences(config, folder / checkpoints.FINAL):
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


@dataclass(frozen=True, slots=True)
class Cost:
    """What a missing stage costs."""

    flops: float
    hours: float | None
    """On this machine; None where no step of the table could be timed here."""


def costs(missing: Sequence[Stage], every: Sequence[Stage], report: Report) -> list[Cost]:
    """What stages cost: FLOPs at the length limits, and hours by them and by one step that is timed here.

    The first stage whose data and models are at hand is timed; the others are taken to do as many FLOPs a second.
    """
    earlier = [stage.run for stage in every]
    known: dict[str, Plan] = {}
    for number, stage in enumerate(missing):
        key = _costly(stage.run)
        known[key] = known.get(key) or plan(stage.run, earlier, draw=False)
        report(number + 1, len(missing))
    flops = [known[_costly(stage.run)].flops for stage in missing]
    rate = _seconds_per_flop([(stage.run, known[_costly(stage.run)]) for stage in missing], earlier)
    return [Cost(one, None if rate is None else one * rate / 3600) for one in flops]


def _costly(config: RunConfig) -> str:
    """What of a config its cost depends on."""
    training = config.training.model_copy(update={"seed": 0, "lr": 1.0, "warmup": 0.0})
    return config.model_copy(update={"output": "-", "training": training}).model_dump_json()


def _seconds_per_flop(planned: Sequence[tuple[RunConfig, Plan]], earlier: Sequence[RunConfig]) -> float | None:
    sources = Sources()
    for config, upper in planned:
        if config.stage in ("metatrain", "finetune") and _at_hand(config):
            drawn = plan(config, earlier, sources=sources)
            if can_be_timed(config, drawn):
                return seconds_per_step(config, sources) / upper.flops_per_step
    return None


def _at_hand(config: RunConfig) -> bool:
    return config.start_from is None or Path(config.start_from).is_dir()
