"""The checkpoints of a run on disk: written whole, found again, pruned, and the best one kept apart.

A run's folder holds `step-N` (model files, the optimizer's state, `trainer.json`), `best` (the model files of the
checkpoint with the highest score), `final` and `log.jsonl`. A writer that is killed leaves hidden drafts only.
"""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from tagi.config import Frozen
from tagi.config.files import read_json
from tagi.errors import CheckpointError
from tagi.files import atomic_folder, check_folder, sweep, write_text

LOG, OPTIMIZER, STATE, FINAL, BEST = "log.jsonl", "optimizer.safetensors", "trainer.json", "final", "best"
BEST_METRIC = "valid_rouge_l"
"""The score that chooses the best checkpoint."""
_STEP = "step-"
_NAME = re.compile(rf"{_STEP}(\d{{8,}})")


class State(Frozen):
    """`trainer.json`: what a checkpoint says of itself."""

    step: int
    scores: dict[str, float]
    numbers: dict[str, int | float]
    """The optimizer's, by parameter and name."""


def check_output(folder: Path, *, resume: bool) -> None:
    """Refuse to train over a run that is already there without `resume`, or where no run can be written."""
    check_folder(folder)
    if not resume and newest(folder) is not None:
        raise CheckpointError(f"{folder}: already holds a run; add --resume to go on, or choose another output")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run that can be continued, oldest first."""
    return sorted(path for path in folder.glob(f"{_STEP}*") if _NAME.fullmatch(path.name))


def newest(folder: Path) -> Path | None:
    """The last checkpoint of a run, `final` where it has come to its end; None where there is none."""
    final = folder / FINAL
    return final if final.exists() else next(reversed(checkpoints(folder)), None)


def place(folder: Path, step: int, steps: int) -> Path:
    """Where the checkpoint after `step` of `steps` belongs."""
    return folder / (FINAL if step == steps else f"{_STEP}{step:08d}")


def complete(draft: Path, state: State, tensors: dict[str, Tensor] | None = None) -> None:
    """Add what a checkpoint says of itself to its draft, and the optimizer's tensors if it can be continued."""
    if tensors is not None:
        save_file(tensors, draft / OPTIMIZER)
    (draft / STATE).write_text(state.model_dump_json(), encoding="utf-8")


def read_state(folder: Path) -> State:
    """What a checkpoint says of itself; a `CheckpointError` where its folder is named after another step."""
    state, named = read_json(State, folder / STATE, "checkpoint of a run"), _NAME.fullmatch(folder.name)
    if named is not None and int(named[1]) != state.step:
        raise CheckpointError(f"{folder / STATE}: step: is {state.step}, which is not that of its folder")
    return state


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put a checkpoint's tensors into the model of the run that wrote it; others are a `CheckpointError`."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names or shapes that differ, all of them listed
        raise CheckpointError(f"{folder}: its tensors are not those of this run's model") from error


def finished(folder: Path, steps: int) -> bool:
    """Whether the run has done all of `steps` already."""
    return (folder / FINAL).exists() and read_state(folder / FINAL).step >= steps


def clear(folder: Path) -> None:
    """Clear away the drafts of a killed run; every checkpoint stays, and one that was being exchanged comes back."""
    sweep(folder, f"{_STEP}*", FINAL, BEST, LOG)


def tidy(folder: Path, keep: int) -> None:
    """Do what a killed run left undone: keep its best, remove its oldest checkpoints."""
    for found in (*checkpoints(folder), folder / FINAL):
        if found.exists():
            keep_best(found)
    prune(folder, keep)


def keep_best(newest: Path) -> None:
    """Make a checkpoint the run's best, without its optimizer, if its score is higher than the best so far."""
    state, best = read_state(newest), newest.parent / BEST
    if BEST_METRIC not in state.scores:
        return
    if best.exists() and read_state(best).scores.get(BEST_METRIC, -math.inf) >= state.scores[BEST_METRIC]:
        return
    with atomic_folder(best) as draft:
        ignored = shutil.ignore_patterns(OPTIMIZER, STATE)
        shutil.copytree(newest, draft, copy_function=_link, ignore=ignored, dirs_exist_ok=True)
        complete(draft, State(step=state.step, scores=state.scores, numbers={}))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints."""
    for old in checkpoints(folder)[:-keep]:
        hidden = old.with_name(f".{old.name}")  # an interrupted removal leaves no half checkpoint behind
        old.rename(hidden)
        shutil.rmtree(hidden)


def cut_log(folder: Path, step: int) -> None:
    """Forget what was logged after a checkpoint, for those steps are done again, and any half line."""
    path = folder / LOG
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if line.endswith("\n") and _logged(line) <= step))


def _logged(line: str) -> float:
    """The step of a log line; infinite for one that is damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(line)["step"]
    return math.inf


def _link(source: str, target: str) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
