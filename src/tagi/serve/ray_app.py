"""The service on many machines with Ray Serve: `serve run tagi.serve.ray_app:build store=DIR keys=FILE`.

Two deployments. Every replica of `Tasks` has the model and the application that `tagi serve` runs. `Entrance` checks
keys and bodies, and sends a request to a replica that holds the adapter of the task that it names; OpenAI's clients
name it in the body, where Ray's own proxies do not look.
"""

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, cast

from prometheus_client import generate_latest
from pydantic import AfterValidator, Field, model_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tagi.config.base import Frozen, Place, Positive
from tagi.config.files import parse
from tagi.infer.engine import Tagi
from tagi.model.checkpoint import read_config
from tagi.serve import openai
from tagi.serve.app import create_app
from tagi.serve.guard import Guard, Settings, read_keys, replayed
from tagi.serve.metrics import Together
from tagi.serve.service import Service, base_name

OPEN = "none"
"""Said instead of a file of keys."""
SLOTS = 4096
"""What Ray knows tasks by: it keeps and shows such ids for ever, and names are the callers'."""
HELD = 512
"""Slots that a replica is asked again for; the adapters themselves are bounded by the store."""
DRAIN = 30
"""Seconds that open requests have before a replica ends."""
PATIENCE = 5.0
"""Seconds that replicas have to tell their numbers."""
_SENT = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_LOG = logging.getLogger("tagi.serve")


def _absolute(place: str) -> str:
    if not Path(place).is_absolute():
        raise ValueError(f"{place} must begin with /: replicas run in folders of their own, on other machines")
    return place


Absolute = Annotated[Place, AfterValidator(_absolute)]
"""A file or folder that lies at one and the same place on every machine."""


class Arguments(Frozen):
    """What `build` takes, as `key=value` or under `args` in a file of `serve deploy`."""

    store: Absolute
    """The folder of tasks and adapters, on a file system that all machines share and that locks files."""
    keys: Place
    """The file of `tagi key`, or `none` where nobody else reaches the port."""
    checkpoint: Absolute | None = None
    """The bundled one by default."""
    backbone: Absolute | None = None
    waiting: Positive = 1024
    """Inputs that may wait, of each replica."""
    seconds: Annotated[float, Field(ge=1)] = 120.0
    """That a request may take."""
    min_replicas: Positive = 1
    max_replicas: Positive = 4
    target_ongoing_requests: Positive = 32
    """Requests that a replica should have; replicas start and stop for it, and at twice as many others are asked."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """Of each replica, as are the CPUs."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} are more than max_replicas, {self.max_replicas}")
        return self


@serve.deployment
class Tasks:
    """A replica: the application of `tagi serve` with a model of its own and the store of all."""

    async def __init__(self, asked: Arguments, settings: Settings) -> None:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        _LOG.setLevel(logging.INFO)
        tagi = Tagi.from_pretrained(asked.checkpoint, backbone=asked.backbone)
        self.service = Service(tagi, Path(asked.store), settings, base=base_name(tagi), across_machines=True)
        self.app = create_app(self.service)
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """What the application sends in answer to a request."""
        slot = serve.get_multiplexed_model_id()
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        running = asyncio.ensure_future(self.app(scope, replayed(body, _never), sent.put))
        running.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                if slot and message.get("status", 500) < 400:
                    await self.hold(slot)  # type: ignore[operator]  # Ray's decorator gives no method by its types
                yield message
        finally:  # also where the caller has hung up
            running.cancel()
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            if isinstance(ended, Exception):
                _LOG.error("a request failed", exc_info=ended)

    @serve.multiplexed(max_num_models_per_replica=HELD)
    async def hold(self, slot: str) -> str:
        """Tell the entrances that this replica answers a slot's tasks; the worker has made the adapter itself, those
        that are missing together, and the store has what the caller may not have: a bound in bytes."""
        return slot

    async def numbers(self) -> tuple[str, bytes]:
        """What this replica is called, and its numbers for Prometheus."""
        return serve.get_replica_context().replica_tag, self.service.metrics.text()

    def check_health(self) -> None:
        """What Ray asks now and then; a replica that fails is started anew."""
        if not self.service.worker.alive:
            raise RuntimeError("the worker has ended")

    async def __del__(self) -> None:
        await self._lifespan.__aexit__(None, None, None)


def entrance(replicas: DeploymentHandle, settings: Settings) -> ASGIApp:
    """What callers reach: keys and limits of the body, and the way to a replica of `Tasks`."""

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        handle = replicas.answer.options(stream=True, multiplexed_model_id=slot_of(named(scope["path"], body)))
        asked = handle.remote({key: scope[key] for key in _SENT if key in scope}, body)
        answer, began = cast("DeploymentResponseGenerator[Message]", asked), False
        try:
            async for message in answer:
                began = True
                await send(message)
        except BackPressureError:
            await _refusal(429, "too much waits already; try again later", "rate_limit_error")(scope, receive, send)
        except (RayActorError, DeploymentUnavailableError):
            if began:  # the status is sent already: the connection breaks off
                raise
            await _refusal(503, "the replica that was asked has ended; ask again", "server_error")(scope, receive, send)
        finally:
            answer.cancel()

    async def metrics(_: Request) -> Response:
        found = await replicas.broadcast("numbers").results_async(timeout_s=PATIENCE, return_exceptions=True)
        texts = dict(one for one in found if not isinstance(one, BaseException))
        return PlainTextResponse(generate_latest(Together(texts)), media_type="text/plain; version=0.0.4")

    guard = Middleware(Guard, settings=settings)
    app = Starlette(routes=[Route("/metrics", metrics), Mount("/", forward)], middleware=[guard])

    async def without_id(scope: Scope, receive: Receive, send: Send) -> None:
        async def passed(message: Message) -> None:
            if message["type"] == "http.response.start":  # Ray's proxy gives the id back itself
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, passed)

    return without_id


@serve.deployment
@serve.ingress()
class Entrance:
    """A replica of the entrance."""

    def __init__(self, replicas: DeploymentHandle, settings: Settings) -> None:
        self.replicas, self.settings = replicas, settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Its application; Ray asks for it."""
        return entrance(self.replicas, self.settings)


def build(arguments: dict[str, Any]) -> Application:
    """The application for `serve run` and `serve deploy`; the values of `Arguments` may be texts."""
    asked = parse(Arguments, arguments, source="arguments")
    if asked.checkpoint is not None:
        read_config(Path(asked.checkpoint))
    keys = () if asked.keys == OPEN else tuple(read_keys(Path(asked.keys)))
    settings = Settings(keys=keys, most_waiting=asked.waiting, seconds=asked.seconds)
    most = 2 * asked.target_ongoing_requests
    tasks = cast("Any", Tasks).options(
        ray_actor_options={"num_cpus": asked.cpus, "num_gpus": asked.gpus},
        autoscaling_config={
            "min_replicas": asked.min_replicas,
            "max_replicas": asked.max_replicas,
            "target_ongoing_requests": asked.target_ongoing_requests,
        },
        max_ongoing_requests=most,
        max_queued_requests=asked.waiting,
        graceful_shutdown_timeout_s=DRAIN,
    )
    # of each as many as replicas that always run; they only pass on
    entrances = cast("Any", Entrance).options(
        num_replicas=asked.min_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=asked.waiting + most * asked.max_replicas,
        graceful_shutdown_timeout_s=DRAIN,
    )
    return entrances.bind(tasks.bind(asked, settings), settings)


def named(path: str, body: bytes) -> str:
    """The task that a request names; empty where it names none, or many."""
    if path.startswith("/v1/tasks/"):
        return path.split("/")[3]
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return ""
    given = [said.get(key) for key in ("model", "task", "name")] if isinstance(said, Mapping) else []
    return next((one for one in given if isinstance(one, str)), "")


def slot_of(name: str) -> str:
    """What Ray is to know a task by; empty where there is none."""
    digest = hashlib.sha256(name.encode(errors="replace")).digest()
    return f"{int.from_bytes(digest[:4]) % SLOTS:03x}" if name else ""


async def _never() -> Message:
    """What else comes of a request that is here as a whole: of a caller who has hung up, cancelling tells."""
    return await asyncio.get_running_loop().create_future()


def _refusal(status: int, message: str, kind: str) -> Response:
    return JSONResponse(openai.error(message, kind), status, {"Retry-After": "1"})
