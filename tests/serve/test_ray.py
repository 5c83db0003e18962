"""Ray Serve without a cluster: what is refused before anything starts, and what the entrance reads of a request."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install '.[ray]'")

import yaml
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import ActorDiedError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ServeDeploySchema
from test_engine import INSTRUCTIONS, make

from blocks import ROOT, blocks
from tagi.config.files import parse
from tagi.data.types import Instruction
from tagi.errors import TagiError
from tagi.serve import ray_app
from tagi.serve.guard import Settings
from tagi.serve.metrics import Together
from tagi.serve.ray_app import SLOTS, Arguments, build, entrance, named, slot_of
from tagi.serve.registry import TaskRegistry
from tagi.serve.store import AdapterStore

GOOD: dict[str, Any] = {"store": "/srv/tasks", "keys": "none"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"keys": "none"}, "arguments: store: Field required"),
    ({"store": "/srv/tasks"}, "arguments: keys: Field required"),
    (GOOD | {"store": "tasks"}, "arguments: store: tasks must begin with /"),
    (GOOD | {"checkpoint": "small"}, "arguments: checkpoint: small must begin with /"),
    (GOOD | {"checkpoint": "/nowhere"}, "/nowhere: is no TAGI checkpoint"),
    (GOOD | {"keys": "/nowhere"}, "/nowhere: cannot be read as hashes of keys"),
    (GOOD | {"min_replica": "2"}, "arguments: min_replica: unknown key, did you mean min_replicas?"),
    (GOOD | {"min_replicas": "5"}, "arguments: min_replicas: 5 are more than max_replicas, 4"),
    (GOOD | {"max_replicas": "many"}, "arguments: max_replicas: Input should be a valid integer"),
    (GOOD | {"gpus": "-1"}, "arguments: gpus: "),
    (GOOD | {"seconds": "nan"}, "arguments: seconds: "),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_a_mistake_is_one_sentence_before_anything_starts(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(TagiError, match=f"^{re.escape(said)}") as raised:
        build(arguments)
    assert "\n" not in str(raised.value)


def test_the_files_of_the_page_can_be_deployed() -> None:
    """As Ray reads them; with arguments that `build` takes."""
    (block,) = [one for one in blocks(ROOT / "docs" / "serving.md") if one.language == "yaml"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(block.text)).applications
    module, _, name = application.import_path.partition(":")
    assert module == ray_app.__name__ and getattr(ray_app, name) is build
    parse(Arguments, application.args, source="the page")
    assert isinstance(build(application.args | {"keys": "none"}), Application)


class Failing:
    """A handle of replicas that send so much, then end with an error."""

    def __init__(self, error: Exception, *sent: dict[str, Any]) -> None:
        self.error, self.sent, self.cancelled = error, sent, 0
        self.answer = self

    def options(self, **_: object) -> "Failing":
        return self

    def remote(self, *_: object) -> "Failing":
        return self

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for one in self.sent:
            yield one
        raise self.error

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize(("error", "status"), [(BackPressureError(2, 1), 429), (ActorDiedError(), 503)])
def test_what_no_replica_answers_may_be_asked_again(error: Exception, status: int) -> None:
    failing = Failing(error)
    with TestClient(entrance(failing, Settings())) as client:  # type: ignore[arg-type]
        answer = client.post("/v1/completions", json={"model": "city", "prompt": "a"})
    assert (
        answer.status_code == status
        and "again" in answer.json()["error"]["message"]
        and answer.headers["retry-after"] == "1"
    )
    assert failing.cancelled == 1


def test_an_answer_whose_replica_ends_breaks_off() -> None:
    """Nothing that could be taken for its end is sent behind what was."""
    began = {"type": "http.response.start", "status": 200, "headers": []}
    with TestClient(entrance(Failing(ActorDiedError(), began), Settings())) as client, pytest.raises(ActorDiedError):  # type: ignore[arg-type]
        client.post("/v1/completions", json={"model": "city", "prompt": "a"})


def test_the_entrance_knows_what_a_request_names() -> None:
    def asked(path: str, **body: object) -> str:
        return named(path, json.dumps(body).encode())

    assert asked("/v1/completions", model="city", prompt="a") == "city"
    assert asked("/v1/chat/completions", model="city", messages=[]) == "city"
    assert asked("/v1/score", inputs=["a"], task="city") == asked("/v1/tasks", instruction="a", name="city") == "city"
    assert named("/v1/tasks/city", b"") == named("/v1/tasks/city/adapter", b"") == "city"
    assert asked("/v1/generate", inputs=[{"input": "a", "task": "city"}]) == "", "of many tasks"
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b"7", b'["model"]', b'{"model": ["city"]}'):
        assert named("/v1/completions", body) == "", body[:20]


def test_slots_are_few_and_say_nothing_of_a_name() -> None:
    slots = [slot_of(f"task-{number}") for number in range(2000)]
    assert slots == [slot_of(f"task-{number}") for number in range(2000)], "of every entrance the same"
    assert len(set(slots)) > 1000 and all(int(one, 16) < SLOTS for one in slots)
    assert slot_of("") == "" and slot_of("\ud800")


def test_the_numbers_of_replicas_stand_under_their_names() -> None:
    texts = {one: f'# TYPE a counter\na_total{{route="/"}} {i}.0\n'.encode() for i, one in enumerate("xy")}
    found = generate_latest(Together(texts)).decode()
    (family,) = text_string_to_metric_families(found)
    assert [(one.labels["replica"], one.value) for one in family.samples] == [("x", 0.0), ("y", 1.0)]


def test_a_store_of_several_machines_has_no_log_in_shared_memory(tmp_path: Path) -> None:
    """Beside one that was opened as usual, which has."""
    modes = list[set[str]]()
    for across in (True, False):
        with AdapterStore(make(), folder := tmp_path / str(across), across_machines=across) as store:
            tasks = TaskRegistry(store)
            tasks.add(Instruction(INSTRUCTIONS[0]), name="first")
            modes.append({one.name for one in folder.iterdir() if one.name.endswith(("-wal", "-shm"))})
            assert [one.name for one in tasks.all()] == ["first"]
            tasks.close()
    assert not modes[0] and len(modes[1]) == 4
