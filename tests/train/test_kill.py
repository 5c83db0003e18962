"""kill -9 at any moment: the run goes on to the bit, and the newest complete checkpoint always loads."""

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from safetensors.torch import load_file

import killed
from killed import Hang
from tagi.model import checkpoint
from tagi.train import checkpoints
from training_runs import furthest, logged

PATIENCE = 120.0


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes in which everything is imported already and nothing has run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])
    return context


@pytest.fixture(scope="module")
def whole(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(processes, folder)
    return folder


def finish(processes: ForkServerContext, folder: Path) -> None:
    process = processes.Process(target=killed.work, args=(folder, None, 0.0))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0


def kill_at(processes: ForkServerContext, folder: Path, moment: str, draw: random.Random) -> bool:
    """Go on with a run and kill it at a moment, or after some time; whether it was still running then."""
    marker = folder.parent / "marker"
    marker.unlink(missing_ok=True)
    hang = Hang(moment, draw.randint(1, 3), marker) if moment != "any time" else None
    process = processes.Process(target=killed.work, args=(folder, hang, 0.01))
    process.start()
    limit = time.monotonic() + (PATIENCE if hang is not None else draw.uniform(0.0, 1.5))
    while process.is_alive() and not marker.exists() and time.monotonic() < limit:
        time.sleep(0.002)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


def check_newest(folder: Path) -> None:
    """What is complete can be opened: the newest checkpoint with its optimizer, the best, the final one."""
    for found in checkpoints.checkpoints(folder)[-1:]:
        checkpoint.load(found)
        assert load_file(found / checkpoints.OPTIMIZER) and checkpoints.read_state(found).step > 0
    for name in (checkpoints.BEST, checkpoints.FINAL):
        if (folder / name).exists():
            checkpoint.load(folder / name)


def check_equal(folder: Path, whole: Path) -> None:
    """Final weights, best weights, log and the files that are there."""
    for name in (checkpoints.FINAL, checkpoints.BEST):
        assert furthest(folder / name, whole / name) == 0.0
        assert checkpoints.read_state(folder / name) == checkpoints.read_state(whole / name)
    assert logged(folder) == logged(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def kill_often(processes: ForkServerContext, whole: Path, tmp_path: Path, moments: list[str], seed: int) -> None:
    """Kill at each moment in turn; a run that ends is compared and the next one begins."""
    draw, rounds = random.Random(seed), 0
    folder = tmp_path / "0" / "run"
    folder.parent.mkdir()
    while moments:
        if kill_at(processes, folder, moments[0], draw):
            moments.pop(0)
            if folder.exists():
                check_newest(folder)
        if (folder / checkpoints.FINAL / checkpoints.STATE).exists():
            finish(processes, folder)
            check_equal(folder, whole)
            rounds += 1
            folder = tmp_path / str(rounds) / "run"
            folder.parent.mkdir()
    finish(processes, folder)
    check_equal(folder, whole)


@pytest.mark.slow
def test_three_kills(processes: ForkServerContext, whole: Path, tmp_path: Path) -> None:
    kill_often(processes, whole, tmp_path, ["half a file", "before a rename", "any time"], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_kills(processes: ForkServerContext, whole: Path, tmp_path: Path, seed: int) -> None:
    """Eight moments of writing, each hit on purpose, and twelve kills at any time."""
    moments = [*killed.MOMENTS, *["any time"] * 12]
    random.Random(seed).shuffle(moments)
    kill_often(processes, whole, tmp_path, moments, seed)


@pytest.mark.slow
def test_the_run_that_is_killed_has_several_bests(whole: Path) -> None:
    """Otherwise nothing above would notice a best that was lost."""
    scores = [line["valid_rouge_l"] for line in logged(whole) if "valid_rouge_l" in line]
    improved = [score for i, score in enumerate(scores) if score > max(scores[:i], default=-1.0)]
    assert len(scores) == killed.STEPS // 2 and 2 <= len(improved) < len(scores)
