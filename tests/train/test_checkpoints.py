"""The checkpoints of a run: the best is kept apart, a full disk or a killed writer leaves what was there."""

import errno
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tagi.config import RunConfig
from tagi.files import DiskError
from tagi.model import checkpoint
from tagi.train import checkpoints
from training_runs import config, furthest, logged, run, tensors

METRIC = "valid_rouge_l"


def scores(*values: float) -> Callable[[Path], dict[str, float]]:
    """An evaluation that gives one score after the other."""
    rest = iter(values)
    return lambda folder: {METRIC: next(rest)}


def best(folder: Path) -> checkpoints.State:
    return checkpoints.read_state(folder / "best")


def test_the_best_checkpoint_stays_without_its_optimizer(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", training__checkpoint_every=1, training__keep=1)
    run(settings, evaluate=scores(0.1, 0.4, 0.3, 0.4, 0.2, 0.1))
    assert best(tmp_path / "run").step == 2  # the first of two equal ones
    assert best(tmp_path / "run").scores == {METRIC: 0.4}
    files = {path.name for path in (tmp_path / "run" / "best").rglob("*")}
    assert checkpoints.OPTIMIZER not in files
    assert {"tagi.json", "model.safetensors", "trainer.json", "backbone"} <= files
    short = config(tmp_path / "short", training__steps=6, training__checkpoint_every=2)
    run(short)
    assert furthest(tmp_path / "run/final", tmp_path / "short/final") == 0.0
    at_two = run(config(tmp_path / "two", training__checkpoint_every=2, training__keep=9)).parent / "step-00000002"
    kept = {name: t for name, t in tensors(at_two).items() if not name.startswith(checkpoints.OPTIMIZER)}
    found = tensors(tmp_path / "run" / "best")
    assert kept.keys() == found.keys() and all(kept[name].equal(found[name]) for name in kept)


def test_the_last_step_is_evaluated_and_can_be_the_best(tmp_path: Path) -> None:
    run(config(tmp_path / "run"), evaluate=scores(0.1, 0.2, 0.3))
    assert best(tmp_path / "run").step == 6
    assert logged(tmp_path / "run")[-1][METRIC] == 0.3
    assert furthest(tmp_path / "run/best", tmp_path / "run/final") == 0.0


def test_without_scores_there_is_no_best(tmp_path: Path) -> None:
    run(config(tmp_path / "run"), evaluate=lambda folder: {"another": 1.0})
    assert not (tmp_path / "run" / "best").exists()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    run(settings)
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert run(settings, resume=True, evaluate=scores()) == tmp_path / "run" / "final"
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_a_finished_run_goes_on_when_it_is_given_more_steps(tmp_path: Path) -> None:
    run(config(tmp_path / "run", training__schedule="constant", training__warmup=0.0))
    longer = {"training__schedule": "constant", "training__warmup": 0.0, "training__steps": 8}
    run(config(tmp_path / "run", **longer), resume=True)
    run(config(tmp_path / "whole", **longer))
    assert furthest(tmp_path / "run/final", tmp_path / "whole/final") == 0.0
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def fails_at(calls: Iterable[int], error: OSError, function: Callable[..., None]) -> Callable[..., None]:
    """The function, raising `error` at those calls."""
    number, failing = iter(range(10**6)), set(calls)

    def call(*args: Any, **kwargs: Any) -> None:
        if next(number) in failing:
            raise error
        function(*args, **kwargs)

    return call


@pytest.mark.parametrize("module", ["tagi.train.checkpoints", "tagi.model.checkpoint"])
def test_a_full_disk_leaves_the_checkpoints_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    settings = config(tmp_path / "run")
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.save_file", fails_at([1], full, checkpoints.save_file))
        with pytest.raises(DiskError, match="step-00000004: no space left on the disk"):
            run(settings, evaluate=scores(0.1, 0.2))
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert [path.name for path in (tmp_path / "run").glob(".*")] == []
    checkpoint.load(tmp_path / "run" / "step-00000002")
    run(settings, resume=True, evaluate=scores(0.2, 0.3))
    run(config(tmp_path / "whole"), evaluate=scores(0.1, 0.2, 0.3))
    assert furthest(tmp_path / "run/final", tmp_path / "whole/final") == 0.0
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def broken_off(settings: RunConfig) -> Path:
    """A run of 6 steps that stopped after 4, with all that killed writers can leave behind."""
    folder = Path(settings.output)
    run(settings, evaluate=scores(0.1, 0.3, 0.2))
    for path in (folder / "final").rglob("*"):
        if path.is_file():
            path.unlink()
    (folder / "final").rename(folder / ".final.abc")  # a draft
    (folder / ".step-00000002").mkdir()  # half removed
    aside = folder / ".best.old.abc"
    aside.mkdir()
    (folder / "best").rename(aside / "best")  # between the two halves of an exchange
    (folder / ".log.jsonl.abc").write_text("x")
    (folder / ".hidden").write_text("the user's own")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "ce"')
    return folder


def test_what_killed_writers_left_is_cleared_away(tmp_path: Path) -> None:
    whole = config(tmp_path / "whole")
    run(whole, evaluate=scores(0.1, 0.3, 0.2))
    folder = broken_off(config(tmp_path / "run"))
    run(config(folder), resume=True, evaluate=scores(0.2))
    assert logged(folder) == logged(tmp_path / "whole")
    assert best(folder) == best(tmp_path / "whole")
    assert [path.name for path in folder.glob(".*")] == [".hidden"]
    assert furthest(folder / "best", tmp_path / "whole" / "best") == 0.0


def test_a_best_that_was_not_yet_made_is_made_on_resume(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    run(settings, evaluate=scores(0.1, 0.3, 0.2))
    for path in sorted((tmp_path / "run" / "best").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "run" / "best").rmdir()
    run(settings, resume=True)
    assert best(tmp_path / "run").step == 4


def test_a_fresh_start_forgets_the_log_of_a_run_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps({"step": 1, "ce": 9.0}) + "\n")
    run(config(tmp_path / "run"))
    run(config(tmp_path / "whole"))
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
