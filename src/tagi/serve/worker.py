"""One thread that owns the model: jobs come from any thread, and join the running batch as places become free."""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import torch

from tagi.backbones.base import Prepared
from tagi.data.types import Instruction
from tagi.errors import TagiError
from tagi.eval.evaluate import prompted
from tagi.infer.answers import Answer
from tagi.infer.engine import Tagi
from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GenerationConfig
from tagi.infer.tasks import Request
from tagi.model.adapter import TaskAdapter
from tagi.model.adapter import unstack as each_of
from tagi.serve.store import GENERATED_TOGETHER, AdapterStore, key_of

READY_BYTES = 512 << 20
"""Of adapters that are ready for a batch; the longest unused go first."""
_LOG = logging.getLogger("tagi.serve")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InPrompt:
    """An instruction that the bare language model reads with every input, as it does without `tagi`."""

    instruction: Instruction


Told = str | Instruction | InPrompt
"""The key of a registered instruction, an instruction that need not be kept, or one for the prompt."""
BARE = "bare"
"""The key of the adapter that changes nothing."""
Input = str | tuple[int, ...]
"""A text, which is put into the prompt's frame, or token ids, which are read as they stand."""


class BusyError(TagiError):
    """More is waiting already than the service takes on."""


class TimeLimitError(TagiError):
    """The answer was not complete in the time that a request has."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer as a whole, or with `answer.error` what ended it."""

    answer: Answer
    tokens: tuple[int, ...]
    prompt_tokens: int


@dataclass(eq=False, slots=True)
class Job:
    """One input to answer.

    Args:
        emit: given every piece if `stream`, and what finished the job; called in the worker's thread.
        deadline: by `time.monotonic`.
    """

    told: Told
    input: Input
    generation: GenerationConfig
    seed: str
    emit: Callable[[Piece | Finished], object]
    deadline: float
    stream: bool = False
    tokens: list[int] = field(default_factory=list)
    shown: int = 0
    prompt_tokens: int = 0
    key: str = field(init=False)
    """Of its task; taken once, for it is asked for in every step that the job waits."""

    def __post_init__(self) -> None:
        self.key = _key(self.told)


@dataclass(frozen=True, slots=True)
class Ready:
    """An adapter with all done that its inputs share."""

    prepared: Prepared
    follows: bool
    """Whether inputs go on behind an encoded instruction."""
    nbytes: int


class Worker:
    """Answers jobs, whatever their tasks, in one batch; other work on the model is done between its steps.

    >>> with Worker(tagi, store) as worker:
    ...     worker.submit([job])
    """

    def __init__(self, tagi: Tagi, store: AdapterStore, *, most_waiting: int = 1024) -> None:
        self.tagi, self.store, self.most_waiting = tagi, store, most_waiting
        self.asking = prompted(tagi)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._scheduler = Scheduler(tagi.model.backbone)
        self._new: list[Job] = []
        self._running: dict[int, Job] = {}
        self._ready: OrderedDict[str, Ready] = OrderedDict()
        self._ready_bytes = 0
        self._numbers = count()
        self._open: set[Job] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tagi-worker", daemon=True)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- from any thread -----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Jobs that are not done."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take on some jobs, all or none.

        Raises:
            BusyError: too many wait already, or the worker is about to stop.
        """
        with self._lock:
            if not self.alive:
                raise BusyError("the service is shutting down")
            if len(self._open) + len(jobs) > self.most_waiting:
                raise BusyError(f"{len(self._open)} inputs are waiting already; try again later")
            self._open.update(jobs)
        self._inbox.put(lambda: self._new.extend(jobs))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget jobs that are not done; nothing more is said of them."""
        self._inbox.put(lambda: self._forget(set(jobs)))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something that uses the model in its thread, between two steps."""
        future: Future[T] = Future()
        self._inbox.put(lambda: _run_into(future, function))
        return future

    def stop(self) -> None:
        """Finish what is open, take on nothing more, and end the thread."""
        with self._lock:
            self._stopping = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()

    # --- in the worker's thread ----------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while not (self._stopping and not self._open and self._inbox.empty()):
            self._receive()
            self._expire()
            try:
                self._admit()
                for step in self._scheduler.step():
                    self._settle(step)
            except Exception as error:  # the model cannot go on with this batch: nobody waits for ever, others may come
                _LOG.exception("the running batch was lost")
                self._scheduler = Scheduler(self.tagi.model.backbone)
                for job in [*self._running.values(), *self._new]:
                    self._finish(job, error=error)
                self._running.clear()
                self._new.clear()

    def _receive(self) -> None:
        """Do what was asked meanwhile; with nothing else to do, wait for it."""
        if not self._new and self._scheduler.idle:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _expire(self) -> None:
        now = time.monotonic()
        with self._lock:  # others submit meanwhile, and a set that grows cannot be gone through
            late = [job for job in self._open if job.deadline < now]
        if late:
            self._forget(set(late))
            for job in late:
                self._finish(job, error=TimeLimitError("the answer was not complete in the time that a request has"))

    def _forget(self, jobs: set[Job]) -> None:
        for number, job in list(self._running.items()):
            if job in jobs:
                self._scheduler.cancel(number)
                del self._running[number]
        self._new = [job for job in self._new if job not in jobs]
        self._open -= jobs

    def _admit(self) -> None:
        """Hand new jobs to the scheduler, those of tasks that are not ready after a batch of adapters is made."""
        missing: dict[str, Job] = {}
        for job in self._new:
            if job.key not in self._ready and len(missing) < GENERATED_TOGETHER:
                missing.setdefault(job.key, job)
        failed = self._make_ready(missing)
        later: list[Job] = []
        for job in self._new:
            if job.key in failed:
                self._finish(job, error=failed[job.key])
            elif job.key in self._ready:
                self._hand_over(job, self._ready[job.key])
            else:
                later.append(job)
        self._new = later
        self._trim()

    def _make_ready(self, missing: dict[str, Job]) -> dict[str, Exception]:
        """Adapters of some tasks, made together if that goes well; what went wrong with the others."""
        try:
            self._keep(self._adapters([job.told for job in missing.values()]))
            return {}
        except Exception:  # with one of them: said of that one alone
            return {key: error for key, job in missing.items() if (error := self._failure(job.told)) is not None}

    def _failure(self, told: Told) -> Exception | None:
        try:
            self._keep(self._adapters([told]))
        except Exception as error:
            return error
        return None

    def _adapters(self, told: Sequence[Told]) -> dict[str, TaskAdapter]:
        keys = [one for one in told if isinstance(one, str)]
        others = [one for one in told if isinstance(one, Instruction)]
        found = dict(zip(keys, self.store.get_all(keys), strict=True)) if keys else {}
        if any(isinstance(one, InPrompt) for one in told):
            found[BARE] = self.tagi.neutral()
        if others:
            found |= zip(map(key_of, others), each_of(self.tagi.adapt_all(others)), strict=True)
        return found

    def _keep(self, adapters: dict[str, TaskAdapter]) -> None:
        for key, adapter in adapters.items():
            attended = adapter.instruction.attended
            follows = attended is not None and bool(attended.mask.any())
            self._ready[key] = Ready(self.tagi.model.prepare(adapter), follows, adapter.nbytes)
            self._ready_bytes += adapter.nbytes

    def _trim(self) -> None:
        while self._ready_bytes > READY_BYTES and len(self._ready) > 1:
            self._ready_bytes -= self._ready.popitem(last=False)[1].nbytes

    def _hand_over(self, job: Job, ready: Ready) -> None:
        self._ready.move_to_end(job.key)
        number, tagi = next(self._numbers), self.tagi
        given = job.input
        if isinstance(given, tuple):
            prompts = [given]
        elif isinstance(job.told, InPrompt):
            prompts = self.asking.prompts(job.told.instruction, given)
        else:
            prompts = tagi.prompts(None, given, follows=ready.follows)
        request = Request(number, prompts, ready.prepared, 0, job.seed, tagi.limits(job.generation), job.generation)
        job.prompt_tokens = request.told + sum(map(len, prompts))
        self._running[number] = job
        self._scheduler.submit(request)

    def _settle(self, step: Tokens) -> None:
        job = self._running[step.number]
        job.tokens += step.new
        if step.done:
            del self._running[step.number]
            self._finish(job, self.tagi.texts.answer(job.tokens, step.finish_reason, job.generation.stop, step.error))
        elif job.stream:
            self._show(job, self.tagi.texts.settled(job.tokens, job.generation.stop))

    def _show(self, job: Job, text: str) -> None:
        if len(text) > job.shown:
            job.emit(Piece(text[job.shown :]))
            job.shown = len(text)

    def _finish(self, job: Job, answer: Answer | None = None, *, error: Exception | None = None) -> None:
        self._open.discard(job)
        if answer is not None and job.stream:
            self._show(job, answer.text)
        ended = answer or Answer("", None, len(job.tokens), error)
        job.emit(Finished(ended, tuple(job.tokens), job.prompt_tokens))


def _key(told: Told) -> str:
    if isinstance(told, InPrompt):
        return BARE
    return told if isinstance(told, str) else key_of(told)


def _run_into(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # handed to whoever asked
        future.set_exception(error)
