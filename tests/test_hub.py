"""Uploading: a hub gets exactly the files that `save_pretrained` writes, and gives back what works."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from test_engine import INPUTS, INSTRUCTIONS, make

from fake_hub import FakeHub
from tagi import Tagi, TaskAdapter
from tagi.backbones.files import locate
from tagi.backbones.t5.weights import read_shape
from tagi.errors import CheckpointError


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_through_a_hub(hub: FakeHub, tmp_path: Path) -> None:
    tagi = make()
    tagi.save_pretrained(tmp_path / "checkpoint")
    tagi.push_to_hub("me/x", private=True, token="hf_secret")
    assert [one["visibility"] for one in hub.created] == ["private"]
    assert hub.files == content(tmp_path / "checkpoint")
    assert {"README.md", "tagi.json", "model.safetensors", "backbone/model.safetensors"} <= hub.files.keys()
    assert {Path(name).suffix for name in hub.files} == {".json", ".md", ".safetensors"}
    again = Tagi.from_pretrained("me/x")
    adapter = tagi.adapt(INSTRUCTIONS[0])
    assert again.generate(INPUTS, adapter) == tagi.generate(INPUTS, adapter)


def test_an_adapter_through_a_hub(hub: FakeHub, tmp_path: Path) -> None:
    tagi = make()
    adapter = tagi.adapt(INSTRUCTIONS[0])
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.push_to_hub("me/x", token="hf_secret")
    assert hub.files == content(tmp_path / "adapter")
    assert hub.files.keys() == {"README.md", "adapter.safetensors"}
    assert TaskAdapter.from_pretrained("me/x").origins == adapter.origins
    assert tagi.generate(INPUTS, tagi.load_adapter("me/x")) == tagi.generate(INPUTS, adapter)


# --- why a model cannot be had ----------------------------------------------------------------------------


@contextmanager
def answering(status: int, headers: dict[str, str]) -> Iterator[str]:
    """A hub that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no model of that name, or a private one"),
        (401, {"X-Error-Code": "RepoNotFound"}, "the hub has no model of that name, or a private one"),
        (403, {"X-Error-Code": "GatedRepo"}, "the hub gives that model only to those who asked its authors"),
        (403, {}, "the hub refused to give it (HTTP status 403)"),
        (418, {}, "the hub refused to give it (HTTP status 418)"),
    ],
)
def test_newcomer_is_told_what_the_hub_answered(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], words: str
) -> None:
    with answering(status, headers) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(CheckpointError) as caught:
            locate("me/x")
    assert str(caught.value).startswith(f"me/x: no such folder, and {words}")


def test_newcomer_is_told_that_the_hub_cannot_be_reached(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, {}) as endpoint:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # nobody listens there any more
    with pytest.raises(CheckpointError, match="me/x: no such folder, and the hub could not be reached"):
        locate("me/x")
    with pytest.raises(CheckpointError, match="me/x: no such folder, and the hub could not be reached"):
        read_shape(Path("me/x"))


def test_newcomer_is_told_that_the_hub_was_not_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"the hub was not asked .HF_HUB_OFFLINE is set"):
        locate("me/x")


@pytest.mark.parametrize("name", ["a/b/c", "-x", "me/x y", "me//x", "C:\\models"])
def test_newcomer_is_told_that_a_name_is_none(hub: FakeHub, name: str) -> None:
    with pytest.raises(CheckpointError, match="no model of a hub can have that name"):
        locate(name)
