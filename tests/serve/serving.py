"""A small service over HTTP, for the tests of it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from test_engine import make

from tagi import Tagi
from tagi.serve.app import create_app
from tagi.serve.guard import Settings
from tagi.serve.service import Service

FIRST, SECOND = "a b c d .", "e f ."
BASE = "small"


@contextmanager
def served(folder: Path, tagi: Tagi | None = None, *, page: bool = False, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a service that really listens."""
    service = Service(tagi or make("tagi", family="decoder"), folder, Settings(**settings), base=BASE)
    config = uvicorn.Config(create_app(service, page=page), port=0, log_level="error", access_log=False, lifespan="on")
    server, opened = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{opened.getsockname()[1]}", timeout=60) as client:
            while not server.started:
                assert thread.is_alive(), "the server ended while it started"
                time.sleep(0.01)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


def registered(client: httpx.Client, instruction: str = FIRST, **more: Any) -> str:
    """The name of a new task."""
    answer = client.post("/v1/tasks", json={"instruction": instruction} | more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


def message(answer: httpx.Response) -> str:
    """The one sentence of a refusal."""
    said = answer.json()["error"]["message"]
    assert isinstance(said, str) and said and "\n" not in said
    return said
