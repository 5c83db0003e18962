"""The worker by itself: what goes wrong with one job, or with the whole batch, leaves the others their answers."""

import queue
import time
from pathlib import Path
from typing import Any

import pytest
from test_engine import INPUTS, INSTRUCTIONS, make

from tagi.data.types import Instruction
from tagi.errors import InputError
from tagi.eval.evaluate import prompted
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GREEDY
from tagi.serve.store import AdapterStore
from tagi.serve.worker import BusyError, Finished, InPrompt, Job, Piece, Told, Worker

Events = queue.SimpleQueue[Piece | Finished]


def job(told: Told, text: str = INPUTS[0], *, stream: bool = False) -> tuple[Job, Events]:
    events: Events = queue.SimpleQueue()
    return Job(told, text, GREEDY, text, events.put, time.monotonic() + 60, stream), events


def finished(events: Events) -> Finished:
    """What ended a job, after its pieces, if any."""
    while not isinstance(one := events.get(timeout=60), Finished):
        pass
    return one


def test_registered_tasks_and_instructions_share_a_batch(tmp_path: Path) -> None:
    tagi = make("tagi", family="decoder")
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        keys = [store.register(told) for told in INSTRUCTIONS[:2]]
        told = [*keys, Instruction(INSTRUCTIONS[2]), *keys]
        pairs = [job(one, text) for one, text in zip(told, INPUTS, strict=True)]
        worker.submit([one for one, _ in pairs])
        found = [finished(events).answer.text for _, events in pairs]
        assert worker.waiting == 0
    each = [INSTRUCTIONS[i] for i in (0, 1, 2, 0, 1)]
    assert found == [tagi.solve(one, [text])[0] for one, text in zip(each, INPUTS, strict=True)]


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_the_bare_model_with_the_instruction_in_its_prompt_is_a_task_like_others(tmp_path: Path, family: str) -> None:
    tagi = make("tagi", family=family)
    told = [Instruction(one) for one in INSTRUCTIONS[:2]]
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        ways: list[Instruction | InPrompt] = [told[0], InPrompt(told[0]), InPrompt(told[1]), told[1]]
        pairs = [job(way, text) for way in ways for text in INPUTS]
        worker.submit([one for one, _ in pairs])
        found = [finished(events).answer.text for _, events in pairs]
    asking = prompted(tagi)
    each = [tagi.solve(told[0], INPUTS), *(asking.solve(one, INPUTS) for one in told), tagi.solve(told[1], INPUTS)]
    assert found == [text for own in each for text in own]
    assert len({tuple(own) for own in each}) == 4


def test_pieces_join_to_the_answer(tmp_path: Path) -> None:
    tagi = make("tagi", family="decoder")
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        one, events = job(Instruction(INSTRUCTIONS[0]), stream=True)
        worker.submit([one])
        text = ""
        while isinstance(event := events.get(timeout=60), Piece):
            text += event.text
    assert text == event.answer.text == tagi.solve(INSTRUCTIONS[0], [INPUTS[0]])[0]


def test_an_adapter_that_cannot_be_made_fails_its_own_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagi = make("tagi", family="decoder")
    adapt_all, bad = tagi.adapt_all, Instruction("p p p .")

    def adapt(instructions: list[Instruction]) -> Any:
        if bad in instructions:
            raise InputError("it cannot be read")
        return adapt_all(instructions)

    monkeypatch.setattr(tagi, "adapt_all", adapt)
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        pairs = [job(one) for one in (Instruction(INSTRUCTIONS[0]), bad, Instruction(INSTRUCTIONS[1]), bad)]
        worker.submit([one for one, _ in pairs])
        errors = [finished(events).answer.error for _, events in pairs]
    assert [str(one) if one else None for one in errors] == [None, "it cannot be read"] * 2


def test_a_batch_that_is_lost_ends_its_jobs_and_the_next_ones_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagi, step, broken = make("tagi", family="decoder"), Scheduler.step, [True]

    def failing(self: Scheduler) -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError("out of memory")
        return step(self)

    monkeypatch.setattr(Scheduler, "step", failing)
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        told = Instruction(INSTRUCTIONS[0])
        first, events = job(told)
        worker.submit([first])
        assert str(finished(events).answer.error) == "out of memory"
        second, events = job(told)
        worker.submit([second])
        assert finished(events).answer.text == tagi.solve(told, [INPUTS[0]])[0]


def test_work_on_the_model_is_done_between_steps_and_its_errors_come_back(tmp_path: Path) -> None:
    tagi = make("tagi", family="decoder")
    with AdapterStore(tagi, tmp_path) as store, Worker(tagi, store) as worker:
        assert worker.call(lambda: 1 + 1).result(60) == 2
        with pytest.raises(ZeroDivisionError):
            worker.call(lambda: 1 / 0).result(60)
    assert not worker.alive
    with pytest.raises(BusyError, match="shutting down"):
        worker.submit([job(Instruction(INSTRUCTIONS[0]))[0]])


def test_stopping_finishes_what_is_open(tmp_path: Path) -> None:
    tagi = make("tagi", family="decoder")
    with AdapterStore(tagi, tmp_path) as store:
        with Worker(tagi, store) as worker:
            pairs = [job(Instruction(INSTRUCTIONS[i % 3]), INPUTS[i % 5]) for i in range(30)]
            worker.submit([one for one, _ in pairs])
        assert all(events.get_nowait().answer.error is None for _, events in pairs)  # type: ignore[union-attr]
