"""The model with its named tasks and the one worker that answers, for asynchronous callers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request

from tagi.data.tokenizers import encode
from tagi.data.types import Instruction
from tagi.errors import InputError, TagiError
from tagi.infer import asked
from tagi.infer.answers import seeded
from tagi.infer.engine import Tagi
from tagi.infer.search import GenerationConfig
from tagi.serve.guard import Settings
from tagi.serve.metrics import Metrics
from tagi.serve.registry import MOST_EXAMPLES, NamedTask, TaskRegistry
from tagi.serve.store import AdapterStore
from tagi.serve.worker import Finished, InPrompt, Input, Job, Piece, Told, Worker

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Service:
    """The model, its tasks, and the one worker that answers; `app` is what a server runs."""

    def __init__(
        self, tagi: Tagi, folder: Path, settings: Settings, *, base: str, across_machines: bool = False
    ) -> None:
        """Tasks and adapters are kept in `folder`, which services `across_machines` may share; the language model is
        called `base`."""
        tagi = tagi.showing(MOST_EXAMPLES)
        self.tagi, self.settings, self.base = tagi, settings, base
        self.store = AdapterStore(tagi, folder, across_machines=across_machines)
        self.tasks = TaskRegistry(self.store)
        self.worker = Worker(tagi, self.store, most_waiting=settings.most_waiting)
        self.metrics = Metrics(self.worker, self.store)
        self.began = int(time.time())

    # --- answering -----------------------------------------------------------------------------------------

    async def finished(
        self, request: Request | None, told: Sequence[Told], inputs: Sequence[Input], generation: GenerationConfig
    ) -> list[Finished]:
        """Every input's answer, in their order.

        Raises:
            TagiError: too much waits, or what went wrong with the first such input.
            ClientGoneError: the caller has hung up; nothing is left in the batch.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Finished]] = [loop.create_future() for _ in inputs]
        deadline, seeds = time.monotonic() + self.settings.seconds, seeded(generation.seed, inputs)

        def emit(future: asyncio.Future[Finished]) -> Callable[[Piece | Finished], object]:
            return lambda one: loop.call_soon_threadsafe(_settle, future, one)

        jobs = [
            Job(one, each, generation, seed, emit(future), deadline)
            for one, each, seed, future in zip(told, inputs, seeds, futures, strict=True)
        ]
        self.worker.submit(jobs)
        try:
            found = await _unless_gone(request, asyncio.gather(*futures))
        except BaseException:
            self.worker.cancel(jobs)
            raise
        for number, one in enumerate(found, 1):
            if one.answer.error is not None:
                error = one.answer.error
                known = isinstance(error, TagiError) and len(found) > 1
                raise type(error)(f"input {number}: {error}") if known else error
            self.metrics.answer_tokens.inc(len(one.tokens))
        return found

    async def pieces(
        self, request: Request | None, told: Told, text: str, generation: GenerationConfig
    ) -> AsyncIterator[Piece | Finished]:
        """The answer to one input as it grows; ends where the caller hangs up, and takes it out of the batch."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Piece | Finished]()
        (seed,) = seeded(generation.seed, [text])

        def emit(one: Piece | Finished) -> None:
            loop.call_soon_threadsafe(events.put_nowait, one)

        job = Job(told, text, generation, seed, emit, time.monotonic() + self.settings.seconds, stream=True)
        self.worker.submit([job])
        try:
            while True:
                one = await _unless_gone(request, asyncio.ensure_future(events.get()))
                yield one
                if isinstance(one, Finished):
                    self.metrics.answer_tokens.inc(len(one.tokens))
                    return
        except ClientGoneError:
            return
        finally:
            self.worker.cancel([job])

    async def on_model(self, request: Request | None, function: Callable[[], T]) -> T:
        """What a function of the model gives, run between two steps of the batch."""
        return await _unless_gone(request, asyncio.wrap_future(self.worker.call(function)))

    async def scores(
        self, request: Request | None, told: Told, texts: Sequence[str], choices: Sequence[str]
    ) -> list[list[float]]:
        """Mean log-likelihood a token of every choice of every input; an `InputError` where these are too many."""
        most = self.settings.most_scored
        if len(texts) * len(choices) > most:
            raise InputError(f"{len(texts)} inputs of {len(choices)} choices are more than {most:,} in all")

        def score() -> list[list[float]]:
            if isinstance(told, InPrompt):
                return self.worker.asking.score_choices(told.instruction, texts, choices)
            adapter = self.store.get(told) if isinstance(told, str) else self.tagi.adapt(told)
            return self.tagi.score_choices(adapter, texts, choices)

        return await self.on_model(request, score)

    async def register(
        self, request: Request | None, told: Instruction, name: str | None, choices: Sequence[str]
    ) -> tuple[NamedTask, bool]:
        """Give a task a name and write its adapter; gives it, and whether it is new. What the model cannot read, or
        `TaskRegistry.add` refuses, is not registered."""
        found, new = await asyncio.to_thread(self.tasks.add, told, name=name, choices=choices)
        try:
            await self.on_model(request, lambda: self.store.get(found.key))
        except TagiError:
            if new:
                self.tasks.remove(found.name)
            raise
        return found, new

    # --- what callers name -----------------------------------------------------------------------------------

    def told(self, task: str | None, instruction: str | None) -> tuple[Told, tuple[str, ...]]:
        """What a request names, and what it chooses from; an error unless it is one task or an instruction."""
        if (task is None) == (instruction is None):
            raise InputError("give either a task's name or an instruction")
        if task is not None:
            found = self.tasks.get(task)
            return found.key, found.choices
        return asked.instruction(instruction), ()

    def inputs(self, given: Sequence[str | Sequence[int]]) -> list[str]:
        """Inputs to answer, not too many and none empty; token ids stand for their text."""
        self._check_count(given)
        return asked.inputs([one if isinstance(one, str) else self._spelled(one) for one in given])

    def ids(self, given: Sequence[str | Sequence[int]]) -> list[tuple[int, ...]]:
        """Token ids of texts as they stand, without what a tokenizer puts around one."""
        self._check_count(given)
        return [tuple(encode(self.tagi.tokenizer, one) if isinstance(one, str) else one) for one in given]

    def _spelled(self, ids: Sequence[int]) -> str:
        known = self.tagi.model.backbone.embedding.num_embeddings
        if max(ids, default=0) >= known:
            raise InputError(f"prompt: {max(ids)} is none of the language model's {known:,} tokens")
        return "".join(self.tagi.texts.pieces(ids))

    def _check_count(self, given: Sequence[object]) -> None:
        if len(given) > self.settings.most_inputs:
            raise InputError(f"{len(given)} inputs are more than the {self.settings.most_inputs} of one request")


def base_name(tagi: Tagi) -> str:
    """What a checkpoint's language model is called."""
    return Path(tagi.config.backbone or "model").name


def _settle(future: asyncio.Future[Finished], one: Piece | Finished) -> None:
    if isinstance(one, Finished) and not future.done():
        future.set_result(one)


async def _unless_gone(request: Request | None, wanted: asyncio.Future[T]) -> T:
    """What is wanted, or `ClientGoneError` where the caller hangs up before."""
    if request is None:  # whoever asks cancels this when nobody waits any more
        return await wanted
    gone = asyncio.ensure_future(_hung_up(request))
    wanted.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks once the caller is gone
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        wanted.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
