"""Whether a run is the one that a checkpoint belongs to: what may differ on `--resume`, and what may not.

Every checkpoint holds `run.yaml`, the config that it was trained with, and `resume.json`, what the config does not
say. Resuming is exact, so a field that changes what is computed is refused by name; the tables here say which do not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tagi.config import Frozen, RunConfig
from tagi.config.files import RUN_FILE, dump, load, read_json
from tagi.data.sources import Sources
from tagi.errors import CheckpointError
from tagi.train import checkpoints, optim

RESUME_FILE = "resume.json"
FREE = frozenset(
    {
        "output",  # a run may be moved
        "training.checkpoint_every",  # what is written, not what is computed
        "training.keep",
        "training.activation_checkpointing",  # memory against time: the same gradients to the bit (test_precision)
        "training.instruction_cache_mb",  # memory against time: the same encodings (test_encodings)
        "objective.teacher.cache",  # says itself which teacher it is of
        "data.corpus.c4",  # a run keeps the text that it read of them, and `pretraining.backbone` knows the files again
        "data.corpus.sni",
        "data.corpus.p3",
    }
)
"""Fields that may change."""
PLACES = ("backbone.path", "backbone.tokenizer", "start_from", "bank", "bank_base", "objective.teacher.checkpoint")
"""Fields that name files, beside every `data….path`: the place may change, what lies there may not."""
EDGE = 1 << 16
"""Bytes at the beginning and at the end of a file that its digest reads."""


class Begun(Frozen):
    """`resume.json`: what a run's config does not say of how it began."""

    processes: int
    """That share the batches of a step."""
    files: dict[str, str]
    """By the field that names them: a digest of the files."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a run leaves in its checkpoints, to be recognised by."""

    config: RunConfig
    begun: Begun

    @staticmethod
    def of(config: RunConfig, processes: int, sources: Sources | None = None) -> "Record":
        """The record of a run that begins now, or goes on."""
        return Record(config, Begun(processes=processes, files=_files(config, sources or Sources())))

    def write(self, draft: Path) -> None:
        """Into a checkpoint's draft."""
        (draft / RUN_FILE).write_text(dump(self.config), encoding="utf-8")
        (draft / RESUME_FILE).write_text(self.begun.model_dump_json(indent=2), encoding="utf-8")

    def check(self, folder: Path) -> list[str]:
        """Compare a run's folder with this run; gives a remark for everything that differs without harm. If another run
        has left it, a `CheckpointError` names the fields."""
        newest = checkpoints.newest(folder)
        if newest is None:
            return []
        before, begun = load(newest / RUN_FILE), read_json(Begun, newest / RESUME_FILE, "checkpoint to resume from")
        files, changed = self.begun.files, _changes(_flat(before), _flat(self.config))
        same = {field for field, digest in files.items() if begun.files.get(field) == digest}
        moved = sorted((begun.files.keys() | files.keys()) - changed.keys() - same)
        changed |= dict.fromkeys(moved, "holds other files than it did")
        free = FREE | same
        # so many processes with so much accumulation see the same batches in a step (`trainer._step`)
        if self.config.training.accumulation * self.begun.processes == before.training.accumulation * begun.processes:
            free |= {"training.accumulation"}
        elif begun.processes != self.begun.processes:
            changed["processes"] = f"{begun.processes} → {self.begun.processes}, which changes what a step sees"
        if "training.steps" in changed and _same_course(before, self.config, newest):
            free |= {"training.steps"}
        if wrong := [f"{field}: {text}" for field, text in changed.items() if field not in free]:
            raise CheckpointError(
                f"{newest}: belongs to another run than this config's ({'; '.join(wrong)}); "
                "resume with the config that it began with, or choose another output"
            )
        return [f"goes on with another {field}: {text}" for field, text in changed.items() if field != "output"]


def check(config: RunConfig, processes: int, folder: Path, sources: Sources | None = None) -> list[str]:
    """The same before anything is built of a run; see `Record.check`."""
    if checkpoints.newest(folder) is None:
        return []
    return Record.of(config, processes, sources).check(folder)


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """`field: old → new` of what makes two configs different runs; places of data do not."""
    changed = _changes(_flat(before), _flat(now))
    places = {f"{field}.path" for field in now.data.by_field}
    return [f"{field}: {text}" for field, text in changed.items() if field not in FREE | places]


def _same_course(before: RunConfig, now: RunConfig, newest: Path) -> bool:
    """Whether another number of steps would have made the steps that are done just as they were.

    Warmup and decay are shares of all steps: of a linear schedule the rates differ nearly everywhere, of a constant
    one nowhere after warmup. Stage `backbone` also changes its objective after a share of them.
    """
    if now.training.steps <= checkpoints.read_state(newest).step:
        return False
    if now.data.corpus is not None and now.data.corpus.adapt not in (0.0, 1.0):
        return False
    from_here = checkpoints.checkpoints(newest.parent)  # a finished run that is given more steps goes on before its end
    done = checkpoints.read_state(from_here[-1]).step if from_here else 0
    old, new = ([optim.learning_rate(step, run.training) for step in range(done)] for run in (before, now))
    return old == new


def _flat(config: Frozen) -> dict[str, Any]:
    """Every value of a config by its dotted path."""

    def leaves(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    return dict(leaves(config.model_dump(mode="json"), ""))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """`old → new` of every field that differs."""
    differ = [field for field in {**before, **now} if before.get(field) != now.get(field)]
    return {field: f"{json.dumps(before.get(field))} → {json.dumps(now.get(field))}" for field in differ}


def _files(config: RunConfig, sources: Sources) -> dict[str, str]:
    """A digest of the files behind every field that names some on this machine."""
    found: dict[str, str] = {}
    for field, value in _flat(config).items():
        if field in PLACES and value is not None and Path(value).is_dir():
            found[field] = digest(Path(value))
    for field, data in config.data.by_field.items():
        if data.path is not None:
            found[f"{field}.path"] = _digest(Path(data.path), sources.of(data).files())
    return found


def digest(folder: Path) -> str:
    """Of all files in a folder, but for hidden ones."""
    return _digest(folder, [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")])


def _digest(folder: Path, files: list[Path]) -> str:
    """Hash of names, sizes, and the first and last `EDGE` bytes of files: of small files all of their contents."""
    digest = sha256()
    for path in sorted(files):
        size = path.stat().st_size
        with path.open("rb") as file:
            edges = file.read(EDGE)
            file.seek(max(size - EDGE, 0))
            edges += file.read(EDGE)
        digest.update(f"{path.relative_to(folder)} {size} ".encode() + sha256(edges).digest())
    return digest.hexdigest()[:16]
