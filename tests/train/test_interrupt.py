"""Ctrl-C and SIGTERM during training: the step in hand is kept, and the run goes on to the bit."""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tagi.train import checkpoints
from tagi.train.build import build_stage
from tagi.train.interrupt import Interrupted, interrupts
from tagi.train.stage import ModelStage
from tagi.train.trainer import train
from training_runs import config, logged, run, tensors


class Dying:
    """Its destructor gets a signal, as the destructor of a library's object may."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts what it runs in the background deaf to Ctrl-C; these tests must hear it there too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at(stage: ModelStage, index: int, happens: Callable[[], Any]) -> ModelStage:
    """A stage to which something happens while it draws a batch."""

    def batch(i: int) -> Any:
        if i == index:
            happens()
        return stage.batch(i)

    return replace(stage, batch=batch)


def in_a_destructor(number: int) -> None:
    Dying(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [signal.raise_signal, in_a_destructor])
def test_a_signal_keeps_the_step_in_hand(tmp_path: Path, number: int, send: Callable[[int], None]) -> None:
    before = signal.getsignal(number)
    whole, broken = config(tmp_path / "whole"), config(tmp_path / "broken")
    run(whole)
    with pytest.raises(Interrupted, match=r"broken/step-00000003 is complete; --resume goes on from there"):
        train(at(build_stage(broken), 2, lambda: send(number)), broken.training, tmp_path / "broken")
    assert signal.getsignal(number) is before
    assert checkpoints.read_state(tmp_path / "broken/step-00000003").step == 3
    run(broken, resume=True)
    one, other = tensors(tmp_path / "whole/final"), tensors(tmp_path / "broken/final")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")


def test_a_checkpoint_that_a_signal_asks_for_is_not_evaluated(tmp_path: Path) -> None:
    settings, seen = config(tmp_path / "run"), list[str]()

    def evaluate(folder: Path) -> dict[str, float]:
        seen.append(folder.name)
        return {"valid_exact_match": 0.0}

    stage = at(build_stage(settings), 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(stage, settings.training, tmp_path / "run", evaluate=evaluate)
    assert len(seen) == 1  # step 2's
    assert checkpoints.read_state(tmp_path / "run/step-00000003").scores == {}


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(at(build_stage(settings), 2, twice), settings.training, tmp_path / "run")
    assert not isinstance(stopped.value, Interrupted)
    assert checkpoints.checkpoints(tmp_path / "run")[-1] == tmp_path / "run/step-00000002"


def test_a_signal_in_the_last_step_ends_as_usual(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    stage = at(build_stage(settings), settings.training.steps - 1, lambda: signal.raise_signal(signal.SIGINT))
    assert train(stage, settings.training, tmp_path / "run") == tmp_path / "run/final"


def test_other_threads_leave_signals_as_they_are() -> None:
    handlers = []

    def look() -> None:
        with interrupts() as told:
            handlers.append((signal.getsignal(signal.SIGINT), told()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [(signal.getsignal(signal.SIGINT), False)]
