"""Whatever the schema allows, and what it does not: no request makes the service fail, and it lives afterwards."""

import resource
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from serving import registered, served

pytestmark = pytest.mark.slow
MALFORMED = 10_000
WARM = 2_000
"""Requests until everything that is kept once is there."""
GROWN = 16 << 20  # 80 KiB measured
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
FIELDS = (
    "instruction",
    "name",
    "examples",
    "choices",
    "model",
    "prompt",
    "messages",
    "inputs",
    "task",
    "n",
    "stop",
    "seed",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    "",
    " ",
    "a",
    "\x00",
    "😀" * 9,
    [],
    [[]],
    {},
    [{}],
    ["a", 1],
    {"a": {}},
    "a" * 5000,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("store")) as client:
        registered(client, name="task")
        yield client


def test_no_request_of_the_schema_makes_it_fail(client: httpx.Client) -> None:
    """Without schemathesis' own plugin, which knows pytest up to 8."""
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    labels: list[str] = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # pyright: ignore[reportAttributeAccessIssue]
        labels.append(operation.label)

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=SLOW)
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            assert case.call().status_code < 500

        check()
    assert len(labels) >= 12 and "POST /v1/completions" in labels


def resident() -> int:
    """Bytes of memory that this process, and so the service, holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_malformed_requests_are_refused_and_the_service_lives(client: httpx.Client) -> None:
    rng, before = Random(0), 0
    paths = ("/v1/tasks", "/v1/completions", "/v1/chat/completions", "/v1/generate", "/v1/score")
    seen: set[int] = set()
    for number in range(MALFORMED):
        if number == WARM:
            before = resident()
        body = {field: rng.choice(VALUES) for field in rng.sample(FIELDS, rng.randint(0, 5))}
        seen.add(client.post(rng.choice(paths), json=body).status_code)
    assert max(seen) < 500 and 400 in seen
    assert resident() - before < GROWN
    assert client.post("/v1/completions", json={"model": "task", "prompt": "a"}).status_code == 200
    assert "tagi_waiting 0.0" in client.get("/metrics").text
