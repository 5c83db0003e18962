"""Many callers of many tasks over HTTP, every answer checked, beside the engine's own throughput with no HTTP."""

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
from tagi.data.synthetic.microtasks import micro_vocabulary
from tagi.data.types import Instruction
from tagi.infer.engine import Tagi
from tagi.infer.search import GenerationConfig
from tagi.serve.app import create_app
from tagi.serve.service import Service, Settings

WORDS = {"instruction": 20, "input": 12}
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


def main(asked: Namespace) -> None:
    """Serve from a temporary folder."""
    tagi, rng, words = engine(Setup(shape_of(asked.shape))), Random(0), micro_vocabulary()
    told = [" ".join(rng.choices(words, k=WORDS["instruction"])) for _ in range(asked.tasks)]
    texts = [" ".join(rng.choices(words, k=WORDS["input"])) for _ in range(asked.requests)]
    owners = [rng.randrange(asked.tasks) for _ in texts]
    with tempfile.TemporaryDirectory() as folder, listening(tagi, Path(folder), asked.requests) as (service, port):
        names = [service.tasks.add(one)[0].name for one in map(Instruction, told)]
        adapters = tagi.adapt_all(told)
        began = time.perf_counter()
        expected = tagi.generate(
            texts, adapters, tasks=owners, generation=GenerationConfig(max_new_tokens=asked.target)
        )
        engine_seconds = time.perf_counter() - began
        calls = [(names[owner], text) for owner, text in zip(owners, texts, strict=True)]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            began = time.perf_counter()
            found = pool.apply(called, (port, calls, asked.clients, asked.target))
            http_seconds = time.perf_counter() - began
    wrong = sum(text != right for (text, _), right in zip(found, expected, strict=True))
    cuts = quantiles([seconds for _, seconds in found], n=100)
    rows = {
        "requests": asked.requests,
        "answers that are not the engine's": wrong,
        "requests a second": asked.requests / http_seconds,
        "of the engine's throughput without HTTP": engine_seconds / http_seconds,
        "p50, ms": 1000 * cuts[49],
        "p95, ms": 1000 * cuts[94],
        "p99, ms": 1000 * cuts[98],
    }
    show(asked, [], {"over HTTP": [{"": name, " ": value} for name, value in rows.items()]})


OPTIONS = parser(__doc__, shape="configs/micro/tagi-decoder.yaml", tasks=500, requests=10_000, clients=64, target=16)
if __name__ == "__main__":
    run(main, OPTIONS)
