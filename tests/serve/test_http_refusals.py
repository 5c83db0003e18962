"""What the service refuses: one clear sentence, the right status, and nothing that stays behind."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FIRST, message, registered, served
from test_engine import INPUTS, make
from test_export_decoder import chatting

from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError
from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GenerationConfig, Limits
from tagi.serve.guard import hashed, new_key, read_keys
from tagi.serve.registry import TaskRegistry
from tagi.serve.store import AdapterStore

FOUR = GenerationConfig(max_new_tokens=4)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    limits = {"body_bytes": 1 << 16, "body_seconds": 1.0, "most_inputs": 8, "most_scored": 64, "most_waiting": 16}
    with served(tmp_path_factory.mktemp("store"), **limits) as client:
        registered(client, name="task")
        registered(client, name="chooser", choices=["a", "b"])
        yield client


READ: dict[str, Any] = {"model": "task", "echo": True, "logprobs": 1}
BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("/v1/tasks", {}, 400, "instruction"),
    ("/v1/tasks", {"instruction": " "}, 400, "the instruction is empty"),
    ("/v1/tasks", {"instruction": FIRST, "nmae": "x"}, 400, "nmae"),
    ("/v1/tasks", {"instruction": FIRST, "name": "../../etc/passwd"}, 400, "name: 1 to 64"),
    ("/v1/tasks", {"instruction": FIRST, "name": ""}, 400, "name: 1 to 64"),
    ("/v1/tasks", {"instruction": FIRST, "name": "a" * 65}, 400, "name: 1 to 64"),
    ("/v1/tasks", {"instruction": FIRST, "choices": ["a", " "]}, 400, "empty choice"),
    ("/v1/tasks", {"instruction": "a \ud800"}, 400, "instruction"),
    ("/v1/completions", {"model": "nobody", "prompt": "a"}, 404, "no task is named 'nobody'"),
    ("/v1/completions", {"model": "task", "prompt": ""}, 400, "prompt"),
    ("/v1/completions", {"model": "task", "prompt": " "}, 400, "the input is empty"),
    ("/v1/completions", {"model": "task", "prompt": [1, "a"]}, 400, "prompt"),
    ("/v1/completions", {"model": "task", "prompt": [-1]}, 400, "prompt"),
    ("/v1/completions", {"model": "task", "prompt": [[3], []]}, 400, "prompt"),
    ("/v1/completions", {"model": "task", "prompt": [3, 48]}, 400, "prompt: 48 is none of the language model's 48"),
    ("/v1/completions", {"model": "task", "prompt": [3, 2**70]}, 400, "none of the language model's"),
    ("/v1/completions", {"model": "task", "prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", {"model": "task", "prompt": "a", "temperature": -1}, 400, "temperature"),
    ("/v1/completions", {"model": "task", "prompt": "a", "stop": ""}, 200, ""),
    ("/v1/completions", {"model": "task", "prompt": "a", "stop": [""]}, 400, "stop"),
    ("/v1/completions", {"model": "task", "prompt": ["a", "b"], "stream": True}, 400, "one input"),
    ("/v1/completions", {"model": "task", "prompt": "a", "logprobs": 6}, 400, "logprobs"),
    ("/v1/completions", READ | {"prompt": "a", "stream": True}, 400, "stream: not with echo"),
    ("/v1/completions", READ | {"prompt": [""]}, 400, "no tokens"),
    ("/v1/completions", READ | {"prompt": "a \ud800"}, 400, "prompt"),
    ("/v1/completions", READ | {"prompt": [3, 48]}, 400, "none of the language model's 48"),
    ("/v1/completions", READ | {"prompt": [3, 2**70]}, 400, "none of the language model's"),
    ("/v1/completions", READ | {"prompt": ["a"] * 9}, 400, "9 inputs are more than the 8"),
    ("/v1/completions", READ | {"prompt": "a b " * 400}, 400, "positions"),
    ("/v1/completions", {"model": "task", "prompt": ["a"] * 9}, 400, "9 inputs are more than the 8"),
    ("/v1/completions", {"model": "task", "prompt": "a b " * 400}, 400, "positions"),
    ("/v1/chat/completions", {"model": "task", "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"model": "task", "messages": [{"role": "system", "content": "a"}]}, 400, "one message"),
    ("/v1/chat/completions", {"model": "task", "messages": [{"role": "user", "content": None}]}, 400, "empty"),
    ("/v1/generate", {"inputs": ["a"]}, 400, "either a task's name or an instruction"),
    ("/v1/generate", {"inputs": ["a"], "task": "task", "instruction": FIRST}, 400, "either a task's name"),
    ("/v1/generate", {"inputs": [], "task": "task"}, 400, "inputs"),
    ("/v1/generate", {"inputs": ["a"], "task": "chooser"}, 400, "chooser chooses from its choices"),
    ("/v1/score", {"inputs": ["a"] * 8, "task": "task", "choices": ["a"] * 9}, 400, "more than 64 in all"),
    ("/v1/score", {"inputs": ["a"], "task": "task"}, 400, "choices: are missing"),
    ("/v1/score", {"inputs": ["a"], "task": "task", "choices": []}, 400, "choices"),
]


@pytest.mark.parametrize(("path", "body", "status", "says"), BAD)
def test_bad_requests(client: httpx.Client, path: str, body: dict[str, Any], status: int, says: str) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert says in message(answer)


def test_an_encoder_s_prompt_has_no_scores(tmp_path: Path) -> None:
    with served(tmp_path, make("tagi")) as client:
        answer = client.post("/v1/completions", json=READ | {"model": registered(client), "prompt": "a"})
        assert answer.status_code == 400 and "without an encoder" in message(answer)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"instruction": "\xff"}', b"\x00" * 100])
def test_bodies_that_are_no_json_objects(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/tasks", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and message(answer)


def test_a_body_that_is_too_large_is_not_kept(client: httpx.Client) -> None:
    assert client.post("/v1/tasks", json={"instruction": "a" * (1 << 17)}).status_code == 413
    parts = (b"a" * 4096 for _ in range(64))  # without a length
    assert client.post("/v1/tasks", content=parts).status_code == 413
    endless = (b"a" * (1 << 16) for _ in range(1 << 12))
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # refused before all of it was sent
        assert client.post("/v1/tasks", content=endless).status_code == 413


def test_an_instruction_of_a_megabyte(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        for path, more in (("/v1/tasks", {}), ("/v1/generate", {"inputs": ["a"]})):
            answer = client.post(path, json={"instruction": "a b c d " * (1 << 17)} | more)
            assert answer.status_code == 400 and "instruction: String should have at most 200000" in message(answer)
        assert client.get("/v1/tasks").json() == {"tasks": []}


def test_templates_in_texts_are_text(tmp_path: Path) -> None:
    """Of instruction, example and input: the model reads the text itself, in its chat template, and not what it would
    give."""
    wild, shown = "{{ 7 * 7 }}{% for x in messages %}x{% endfor %}", "{{ messages }}"
    tagi = chatting("base")
    with served(tmp_path, tagi) as client:
        name = registered(client, wild, examples=[{"input": shown, "output": shown}])
        told = client.get(f"/v1/tasks/{name}").json()
        assert told["instruction"] == wild and told["examples"] == [{"input": shown, "output": shown}]
        answer = client.post("/v1/completions", json={"model": name, "prompt": wild, "max_tokens": 4})
    own, instruction = tagi.showing(1), Instruction(wild, (Demonstration(shown, shown),))
    assert answer.json()["choices"][0]["text"] == own.generate([wild], own.adapt(instruction), generation=FOUR)[0]
    read = own.tokenizer.decode(own.collator.instruction(instruction))
    assert wild in read and read.count(shown) == 2
    assert wild in own.tokenizer.decode(own.collator.input(None, wild, follows=True))


def test_a_caller_that_sends_nothing_more_is_let_go(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as slow:
        slow.sendall(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%00", "a%20b", "nobody", "-", "a" * 300])
def test_names_of_no_task(client: httpx.Client, name: str) -> None:
    for path in (f"/v1/tasks/{name}", f"/v1/tasks/{name}/adapter"):
        assert client.get(path).status_code == 404


def test_more_than_can_wait_is_refused_as_a_whole(tmp_path: Path) -> None:
    with served(tmp_path, most_waiting=4) as client:
        name = registered(client)
        answer = client.post("/v1/completions", json={"model": name, "prompt": ["a"] * 5})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1" and "try again" in message(answer)
        assert client.post("/v1/completions", json={"model": name, "prompt": ["a"] * 4}).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with served(tmp_path, seconds=0.0) as client:
        name = registered(client)
        answer = client.post("/v1/completions", json={"model": name, "prompt": "a"})
        assert answer.status_code == 504 and "time" in message(answer)
        assert "tagi_waiting 0.0" in client.get("/metrics").text


def test_whoever_hangs_up_leaves_no_work_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagi, step = make("tagi", family="decoder"), Scheduler.step
    monkeypatch.setattr(tagi, "limits", lambda _: Limits((), 40))  # answers of 40 tokens, 0.25 s each

    def slow(self: Scheduler) -> list[Tokens]:
        time.sleep(0.25)
        return step(self)

    monkeypatch.setattr(Scheduler, "step", slow)
    with served(tmp_path, tagi) as client:
        name = registered(client)
        for stream in (False, True):
            body = {"model": name, "prompt": "a", "stream": stream}
            with (
                contextlib.suppress(httpx.ReadTimeout),
                client.stream("POST", "/v1/completions", json=body, timeout=0.3),
            ):
                pass  # the head of a stream comes at once; no answer can have come
            for _ in range(100):
                if "tagi_waiting 0.0" in client.get("/metrics").text:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the answer is still written though nobody waits for it")


def test_keys(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "keys").write_text(f"{hashed(key)} alice\n{hashed(new_key())}\n")
    with served(tmp_path / "store", keys=tuple(read_keys(tmp_path / "keys"))) as client:
        assert client.get("/healthz").status_code == 200
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": hashed(key)},
            {"Authorization": "Bearer"},
        ):
            for path in ("/v1/tasks", "/v1/models", "/metrics", "/docs", "/openapi.json"):
                answer = client.get(path, headers=wrong)
                assert answer.status_code == 401 and "key" in message(answer) and key not in answer.text
        assert client.get("/v1/tasks", headers={"Authorization": f"Bearer {key}"}).json() == {"tasks": []}


def test_a_browser_sends_the_key_as_a_password(tmp_path: Path) -> None:
    """Not to what changes something: another site could make it do so."""
    key = new_key()
    with served(tmp_path / "store", keys=(hashed(key),)) as client:
        assert client.get("/v1/tasks").headers["WWW-Authenticate"].startswith("Basic ")
        assert client.get("/v1/tasks", auth=("anyone", key)).status_code == 200
        for wrong in ("", "wrong", hashed(key)):
            assert client.get("/v1/tasks", auth=("anyone", wrong)).status_code == 401
        for header in ("Basic", "Basic !", "Basic /w==", f"Basic {key}"):
            assert client.get("/v1/tasks", headers={"Authorization": header}).status_code == 401
        asked = {"instruction": FIRST}
        assert client.post("/v1/tasks", json=asked, auth=("anyone", key)).status_code == 401
        assert client.post("/v1/tasks", json=asked, headers={"Authorization": f"Bearer {key}"}).status_code == 201


@pytest.mark.parametrize("text", ["", "tagi-secret\n", "abc"])
def test_a_file_without_hashes_of_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=r"SHA-256|no hash") as refused:
        read_keys(tmp_path / "keys")
    assert "secret" not in str(refused.value)


def test_request_ids_come_back_and_logs_hold_no_text(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tagi.serve")
    answer = client.post(
        "/v1/generate", json={"instruction": "p p p .", "inputs": ["o o o"]}, headers={"X-Request-Id": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    assert client.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"
    entries = [json.loads(record.message) for record in caplog.records]
    assert entries[0]["id"] == "mine-1" and entries[0]["route"] == "/v1/generate" and entries[0]["status"] == 200
    assert not any("p p p" in record.message or "o o o" in record.message for record in caplog.records)


def test_tasks_survive_a_restart(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        name = registered(client, choices=["a", "b"])
        shown, answer = client.get(f"/v1/tasks/{name}").json(), client.get("/v1/models").json()
    with served(tmp_path) as client:
        assert client.get(f"/v1/tasks/{name}").json() == shown
        assert client.get("/v1/models").json()["data"][1:] == answer["data"][1:]


def test_an_instruction_that_cannot_be_read_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagi = make("tagi", family="decoder")

    def fails(*_: Any) -> Any:
        raise InputError("the instruction cannot be read")

    monkeypatch.setattr(tagi, "adapt_all", fails)
    with served(tmp_path, tagi) as client:
        answer = client.post("/v1/tasks", json={"instruction": FIRST, "name": "bad"})
        assert answer.status_code == 400 and "cannot be read" in message(answer)
        assert client.get("/v1/tasks").json() == {"tasks": []}
        answer = client.post("/v1/generate", json={"instruction": FIRST, "inputs": [INPUTS[0]]})
        assert answer.status_code == 400 and "cannot be read" in message(answer)


def test_processes_share_a_registry(tmp_path: Path) -> None:
    tagi = make("tagi", family="decoder")
    with AdapterStore(tagi, tmp_path) as one, AdapterStore(tagi, tmp_path) as other:
        first, second = TaskRegistry(one), TaskRegistry(other)
        names: list[str] = []

        def add(registry: TaskRegistry) -> None:
            for number in range(20):
                names.append(registry.add(Instruction(f"a {number} ."))[0].name)

        threads = [threading.Thread(target=add, args=(each,)) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(names) == 40 and len({task.name for task in first.all()}) == len(second.all()) == 20
        first.close()
        second.close()
