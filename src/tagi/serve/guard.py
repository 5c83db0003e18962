"""What stands between callers and the service: keys, limits of size and time of the body, request ids, counts, logs."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tagi.errors import InputError
from tagi.serve.metrics import Metrics
from tagi.serve.openai import error

OPEN = ("/healthz", "/readyz")
"""What needs no key: whoever asks whether the service runs has none."""
_ID = re.compile("[A-Za-z0-9._-]{1,64}")
_HASH = re.compile("[0-9a-f]{64}")
_LOG = logging.getLogger("tagi.serve")

DISCARDED = 8
"""Times the limit that a body may have to be read to its end and dropped: a caller that is refused in the middle of
sending sees a connection that breaks, and not why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service takes on."""

    keys: tuple[str, ...] = ()
    """SHA-256 of every key; none where whoever reaches the service may use it."""
    body_bytes: int = 4 << 20
    """Of a request's body."""
    body_seconds: float = 20.0
    """Until a body has come as a whole."""
    most_inputs: int = 256
    """Of one request."""
    most_scored: int = 4096
    """Choices of all inputs of one request: they are scored between two steps of the batch."""
    most_waiting: int = 1024
    """Inputs that are not answered yet, of all requests."""
    seconds: float = 120.0
    """That a request may take."""


class Guard:
    """Middleware around the whole application; reads a request's body before anything else sees the request."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics | None = None) -> None:
        """Without `metrics` whoever comes next counts the requests."""
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        MutableHeaders(scope=scope)["x-request-id"] = request_id  # whoever is asked next logs the same
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            refusal = self._refusal(scope["method"], scope["path"], headers)
            body = refusal or await self._body(headers, receive)
            if isinstance(body, JSONResponse):
                await body(scope, receive, answer)
            elif body is not None:
                await self.app(scope, replayed(body, receive), answer)
        finally:
            seconds = time.perf_counter() - began
            # of the route, never of the address: names are the callers'
            route = getattr(scope.get("route"), "path", "other")
            if self.metrics is not None:
                self.metrics.seen(scope["method"], route, status, seconds)
            entry = {"id": request_id, "method": scope["method"], "route": route, "status": status}
            _LOG.info(json.dumps(entry | {"ms": round(1000 * seconds, 1)}))

    def _refusal(self, method: str, path: str, headers: Headers) -> JSONResponse | None:
        if not self.settings.keys or path in OPEN:
            return None
        # a browser sends what a person typed with whatever another site makes it post: so not to the API
        typed = method in ("GET", "HEAD") or not path.startswith("/v1/")
        digest = hashed(_key(headers.get("authorization", ""), typed=typed))
        if any(hmac.compare_digest(digest, one) for one in self.settings.keys):
            return None
        said = error("the key is missing or wrong: send it as `Authorization: Bearer KEY`", "authentication_error")
        return JSONResponse(said, 401, {"WWW-Authenticate": 'Basic realm="tagi: any name, the key as password"'})

    async def _body(self, headers: Headers, receive: Receive) -> bytes | JSONResponse | None:
        """The whole body; what refuses it; None where the caller has gone."""
        length, most = headers.get("content-length", "0"), self.settings.body_bytes
        if not length.isdigit() or int(length) > DISCARDED * most:
            return _too_large(most)
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size > DISCARDED * most:
                        return _too_large(most)
                    parts.append(message.get("body", b""))
                    if size > most:
                        parts.clear()
                    if not message.get("more_body", False):
                        return b"".join(parts) if size <= most else _too_large(most)
        except TimeoutError:
            said = error(f"the body did not come within {self.settings.body_seconds:g} seconds", "timeout_error")
            return JSONResponse(said, 408, {"Connection": "close"})


def _key(authorization: str, *, typed: bool) -> str:
    """The key that a request brings: `Bearer KEY`, or a password that a browser asked for, `Basic base64(NAME:KEY)`."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic" or not typed:
        return authorization.removeprefix("Bearer ").strip()
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _too_large(most: int) -> JSONResponse:
    return JSONResponse(error(f"the body is larger than {most:,} bytes"), 413, {"Connection": "close"})


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read already."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def hashed(key: str) -> str:
    """What is kept of a key. Keys are random and long, so that a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key of 256 random bits."""
    return f"tagi-{secrets.token_urlsafe(32)}"


def read_keys(file: Path) -> list[str]:
    """The hashes of a file, one a line; a remark may stand behind each. An `InputError` never prints a key itself."""
    try:
        lines = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{file}: cannot be read as hashes of keys") from problem
    for number, line in enumerate(lines, 1):
        if not _HASH.fullmatch(line):
            raise InputError(f"{file}: line {number} is no SHA-256 of a key; `tagi key -o {file}` adds one")
    if not lines:
        raise InputError(f"{file}: holds no hash of a key; `tagi key -o {file}` adds one")
    return lines
