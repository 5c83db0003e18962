"""A hub on this machine that keeps what is committed to it and gives it back: just enough of the real one's HTTP."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Files of the one repository, and how it was asked for."""

    endpoint: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers as long as the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(json.dumps(_posted(hub, self.path, body)).encode())

        def do_GET(self) -> None:
            if self.path.startswith("/api/"):
                self._send(json.dumps(_listed(hub, self.path)).encode())
            else:
                self._send(hub.files[unquote(self.path).partition(f"/resolve/{COMMIT}/")[2]])

        do_HEAD = do_GET

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _listed(hub: FakeHub, path: str) -> Any:
    if "/tree/" in path:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in hub.files.items()
        ]
    return {"id": "me/x", "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}


def _posted(hub: FakeHub, path: str, body: bytes) -> dict[str, Any]:
    if path == "/api/repos/create":
        hub.created.append(json.loads(body))
        return {"url": f"{hub.endpoint}/me/x"}
    if "/preupload/" in path:
        asked = json.loads(body)["files"]
        return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
    if "/commit/" in path:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{hub.endpoint}/me/x/commit/{COMMIT}", "commitOid": COMMIT}
    return {}
