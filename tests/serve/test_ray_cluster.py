"""Ray Serve on a local cluster of two nodes, each a process with a replica: answers are the engine's, whoever gives
them, and whoever dies."""

import itertools
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install '.[ray]'")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.cluster_utils import Cluster
from serving import message, registered
from test_engine import INPUTS, make

from tagi import Tagi
from tagi.serve.guard import hashed, new_key
from tagi.serve.ray_app import build

pytestmark = pytest.mark.slow  # a minute until the cluster runs
KEY = new_key()
ONGOING = 4
"""Requests that a replica should have; it takes on twice as many."""
ENDS = {"Tasks": {"200", "503"}, "Entrance": {"200", "503", "500", "broken off"}}
"""How requests end while one of these dies; an entrance takes along what passes through it."""
NAMES = (f"task-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    make("tagi", family="decoder", max_target=200).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagi(small: Path) -> Tagi:
    return Tagi.from_pretrained(small)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the keys lie, and in `store` the tasks."""
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def client(small: Path, folder: Path) -> Iterator[httpx.Client]:
    """Of two nodes with a processor each, so that each has one of the two replicas."""
    (folder / "keys").write_text(f"{hashed(KEY)}\n", encoding="utf-8")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        arguments = {"store": str(folder / "store"), "keys": str(folder / "keys"), "checkpoint": str(small)}
        serve.run(
            build(
                arguments | dict.fromkeys(("min_replicas", "max_replicas"), "2") | {"target_ongoing_requests": ONGOING}
            )
        )
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers=headers) as opened:
            yield opened
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def numbers(client: httpx.Client, name: str, **labels: str) -> dict[str, float]:
    """One of the numbers, by replica."""
    found = Counter[str]()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for one in family.samples:
            if one.name == name and labels.items() <= one.labels.items():
                found[one.labels["replica"]] += one.value  # type: ignore[assignment]
    return dict(found)


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for it; the limit is for a test that would hang."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, f"it never came to it: {what}"
        time.sleep(0.05)


def actors() -> list[str]:
    """The names of Ray's processes that have one."""
    return [one["name"] for one in cast("list[dict[str, str]]", ray.util.list_named_actors(all_namespaces=True))]


def ask(client: httpx.Client, name: str, text: str = INPUTS[0], **more: Any) -> str:
    answer = client.post("/v1/completions", json={"model": name, "prompt": text} | more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def anywhere(client: httpx.Client, name: str, text: str) -> str:
    answer = client.post("/v1/generate", json={"inputs": [{"input": text, "task": name}]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["answers"][0]["text"])


def answered(client: httpx.Client) -> dict[str, float]:
    return numbers(client, "tagi_requests_total", route="/v1/completions", status="200")


def test_what_one_replica_registers_both_answer_as_the_engine_does(client: httpx.Client, tagi: Tagi) -> None:
    """Of each task one adapter is generated in all, and each replica takes it up once. What names its task with its
    input only goes to any replica."""

    def taken_up(source: str) -> dict[str, float]:
        return numbers(client, "tagi_adapters", source=source)

    made, read = taken_up("generated"), taken_up("disk")
    told = [f"{a} {b} ." for a in "abcd" for b in "ef"]
    right = {registered(client, one, name=next(NAMES)): tagi.solve(one, INPUTS) for one in told}
    assert len({tuple(one) for one in right.values()}) > 4
    with ThreadPoolExecutor(4 * ONGOING) as pool:
        for number, (name, answers) in enumerate(right.items(), 1):

            def by_both(name: str = name, answers: list[str] = answers, number: int = number) -> bool:
                found = pool.map(lambda one: anywhere(client, name, INPUTS[one % 5]), range(8 * ONGOING))
                assert list(found) == [answers[one % 5] for one in range(8 * ONGOING)]
                return sum(taken_up("disk").values()) - sum(read.values()) == number

            until(by_both, "a task that both answer")
    for replica, count in taken_up("generated").items():
        assert count - made[replica] + taken_up("disk")[replica] - read[replica] == len(told)
    assert sum(taken_up("generated").values()) - sum(made.values()) == len(told)
    assert not sum(taken_up("damaged").values())


def test_databases_keep_no_log_that_machines_cannot_share(client: httpx.Client, folder: Path) -> None:
    registered(client, "a b .", name=next(NAMES))
    files = sorted((folder / "store").glob("*.sqlite3"))
    assert "tasks.sqlite3" in [file.name for file in files] and len(files) > 1
    for file in files:
        with closing(sqlite3.connect(file)) as opened:
            assert opened.execute("PRAGMA journal_mode").fetchone() == ("delete",), file


def test_requests_of_a_task_go_to_the_replica_that_holds_it(client: httpx.Client) -> None:
    """16 of 16 to one of two replicas, by chance, is 1 in 32,768; one of eight tasks must have it, for some are asked
    for before the entrance knows who holds them."""
    for _ in range(8):
        name = registered(client, "a c e .", name=next(NAMES))
        time.sleep(1)
        before = answered(client)
        for _ in range(16):
            ask(client, name)
        more = [count - before.get(replica, 0) for replica, count in answered(client).items()]
        assert sum(more) == 16
        if 16 in more:
            return
    pytest.fail("requests of a task go anywhere")


def test_the_client_of_openai_and_streams_work_as_with_one_process(client: httpx.Client, tagi: Tagi) -> None:
    name = registered(client, "b d f .", name=next(NAMES))
    official = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0)
    (right,) = tagi.solve("b d f .", [INPUTS[1]])
    pieces = [one.choices[0].text for one in official.completions.create(model=name, prompt=INPUTS[1], stream=True)]
    assert "".join(pieces) == right and len(pieces) > 2
    assert name in [one.id for one in official.models.list()]
    assert client.delete(f"/v1/tasks/{name}").status_code == 204
    gone = client.post("/v1/completions", json={"model": name, "prompt": "a"})
    assert gone.status_code == 404 and "no task is named" in message(gone)


def test_keys_and_limits_are_those_of_one_process(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url) as stranger:
        assert stranger.get("/readyz").json() == {"status": "ready"}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert stranger.get(path).status_code == 401
        refused = stranger.post("/v1/completions", json={"model": "task-0", "prompt": "a"})
        assert refused.status_code == 401 and "key" in message(refused)
    large = client.post("/v1/completions", content=b" " * (5 << 20))
    assert large.status_code == 413 and "larger than" in message(large)
    assert "prompt" in message(client.post("/v1/completions", json={"model": "task-0"}))
    given = client.get("/v1/models", headers={"X-Request-Id": "mine"})
    assert given.headers.get_list("x-request-id") == ["mine"]


def test_whoever_hangs_up_is_taken_out_of_the_batch(client: httpx.Client) -> None:
    name = registered(client, "c d e .", name=next(NAMES))

    def waiting() -> float:
        return sum(numbers(client, "tagi_waiting").values())

    before = numbers(client, "tagi_answer_tokens_total")
    body = {"task": name, "inputs": [*INPUTS] * 50, "max_tokens": 1000}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=client.base_url, headers=client.headers) as own:
        request = own.build_request("POST", "/v1/generate", json=body, timeout=120)
        asked = pool.submit(own.send, request)
        until(lambda: waiting() > 0 or asked.done(), "a request that runs")
        assert not asked.done(), "it was answered before it could be interrupted"
        for one in own._transport._pool._connections:  # type: ignore[attr-defined]
            one._connection._network_stream._sock.shutdown(socket.SHUT_RDWR)
        assert asked.exception() is not None
    until(lambda: waiting() == 0, "an empty batch")
    assert numbers(client, "tagi_answer_tokens_total") == before, "it was answered to its end"


@pytest.mark.parametrize("deployment", ["Tasks", "Entrance"])
def test_one_dies_under_load_and_the_next_requests_are_answered(
    deployment: str, client: httpx.Client, tagi: Tagi
) -> None:
    told = [f"{a} p ." for a in "abcd"]
    right = {registered(client, one, name=next(NAMES)): tagi.solve(one, [INPUTS[2]])[0] for one in told}
    ended = False

    def busy(name: str) -> Counter[str]:
        """How requests ended; answers that came must be right."""
        found = Counter[str]()
        while not ended:
            try:
                answer = client.post("/v1/completions", json={"model": name, "prompt": INPUTS[2]})
            except httpx.TransportError:
                found["broken off"] += 1
                continue
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == right[name]
            found[str(answer.status_code)] += 1
        return found

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(busy, name) for name in [*right] * 2]
        try:
            victim = next(one for one in actors() if f"#{deployment}#" in one)
            ray.kill(ray.get_actor(victim, namespace="serve"))
            until(lambda: victim not in actors(), "a death")
            for _ in range(20):
                until(
                    lambda: client.post("/v1/completions", json={"model": "task-0", "prompt": "a"}).status_code == 200,
                    "an answer",
                )
        finally:
            ended = True
        found = sum((one.result() for one in running), Counter[str]())
    assert set(found) <= ENDS[deployment] and found["200"] > 20, found
    until(lambda: len(numbers(client, "tagi_waiting")) == 2, "two replicas again")
    for name, answer in right.items():
        assert ask(client, name, INPUTS[2]) == answer
