"""Many callers of many tasks over HTTP, every answer checked, in turn with the engine itself, with no HTTP."""

import json
import multiprocessing
import socket
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from statistics import quantiles

import uvicorn

from benchmarks.command import parser, run, show
from benchmarks.models import Setup, shape_of
from benchmarks.store import engine
from benchmarks.timing import Comparison
from tagi import bundled
from tagi.cli.common import bar
from tagi.config import DataConfig
from tagi.data.sources.everyday import Everyday
from tagi.data.synthetic.microtasks import micro_vocabulary
from tagi.data.types import Instruction
from tagi.infer.engine import Tagi
from tagi.infer.search import GenerationConfig
from tagi.serve.app import create_app
from tagi.serve.guard import Settings
from tagi.serve.service import Service

WORDS = {"instruction": 20, "input": 12}
Owned = tuple[int, str]
"""The number of a task, and an input."""
Call = tuple[str, str]
"""The name of a task, and an input."""


@contextmanager
def listening(tagi: Tagi, folder: Path, waiting: int) -> Iterator[tuple[Service, int]]:
    """A service and its port."""
    service = Service(tagi, folder, Settings(most_waiting=waiting), base="random")
    server = uvicorn.Server(uvicorn.Config(create_app(service), access_log=False, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield service, opened.getsockname()[1]
        server.should_exit = True
        thread.join()


def called(port: int, calls: Sequence[Call], clients: int, tokens: int) -> list[tuple[str, float]]:
    """Every call's answer and seconds, by so many clients of a process of their own."""
    local = threading.local()

    def call(one: Call) -> tuple[str, float]:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection("127.0.0.1", port)
        body = json.dumps({"model": one[0], "prompt": one[1], "max_tokens": tokens})
        began = time.perf_counter()
        local.connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(local.connection.getresponse().read())
        return answer["choices"][0]["text"], time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(call, calls))


def work(asked: Namespace) -> tuple[Tagi, list[str], list[Owned]]:
    """An engine, instructions, and inputs each with the number of its instruction: random words for random weights,
    or everyday tasks for a checkpoint."""
    rng = Random(0)
    if asked.checkpoint:
        source = Everyday(DataConfig(source="everyday", path=str(bundled.everyday())))
        tasks = list(source.test(0))[: asked.tasks]
        rows = [(number, row.input) for number, task in enumerate(tasks) for row in task.examples]
        told = [task.instruction.definition for task in tasks]
        return Tagi.from_pretrained(asked.checkpoint), told, rng.choices(rows, k=asked.requests)
    words = micro_vocabulary()
    told = [" ".join(rng.choices(words, k=WORDS["instruction"])) for _ in range(asked.tasks)]
    rows = [(rng.randrange(asked.tasks), " ".join(rng.choices(words, k=WORDS["input"]))) for _ in range(asked.requests)]
    return engine(Setup(shape_of(asked.shape))), told, rows


def main(asked: Namespace) -> None:
    """Serve from a temporary folder."""
    tagi, told, rows = work(asked)
    parts = [rows[number :: asked.rounds + 1] for number in range(asked.rounds + 1)]
    compared = Comparison("answers", {}, len(parts[0]), seconds={"the engine, no HTTP": [], "over HTTP": []})
    waited, wrong = list[float](), 0
    with tempfile.TemporaryDirectory() as folder, listening(tagi, Path(folder), asked.requests) as (service, port):
        names = [service.tasks.add(one)[0].name for one in map(Instruction, told)]
        adapters, generation = tagi.adapt_all(told), GenerationConfig(max_new_tokens=asked.target)
        with multiprocessing.get_context("spawn").Pool(1) as pool, bar("serving") as progress:
            for done, part in enumerate(parts):
                owners, texts = [owner for owner, _ in part], [text for _, text in part]
                began = time.perf_counter()
                expected = tagi.generate(texts, adapters, tasks=owners, generation=generation)
                between = time.perf_counter()
                calls = [(names[owner], text) for owner, text in part]
                found = pool.apply(called, (port, calls, asked.clients, asked.target))
                ended = time.perf_counter()
                wrong += sum(text != right for (text, _), right in zip(found, expected, strict=True))
                progress(done + 1, len(parts))
                if not done:  # the first round makes adapters and starts processes: checked, not timed
                    continue
                compared.seconds["the engine, no HTTP"].append(between - began)
                compared.seconds["over HTTP"].append(ended - between)
                waited += [seconds for _, seconds in found]
    cuts = quantiles(waited, n=100)
    of_a_request = {"requests": len(rows), "answers that are not the engine's": wrong}
    of_a_request |= {f"p{cut}, ms": 1000 * cuts[cut - 1] for cut in (50, 95, 99)}
    show(asked, [compared], {"over HTTP": [{"": name, " ": value} for name, value in of_a_request.items()]})


OPTIONS = parser(
    __doc__,
    shape="configs/micro/tagi-decoder.yaml",
    checkpoint="",
    tasks=500,
    requests=10_000,
    clients=64,
    target=16,
    rounds=10,
)
if __name__ == "__main__":
    run(main, OPTIONS)
