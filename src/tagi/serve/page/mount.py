"""The page at `/` of the service's application."""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it asks other hosts for its version

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from tagi.serve import openai
from tagi.serve.guard import replayed
from tagi.serve.page.layout import Page, theme
from tagi.serve.service import Service

KEPT, EVERY = 600, 60
"""Seconds that a file of the page's is kept, and between two looks at them."""
STYLE = Path(__file__).with_name("style.css")
_API = "/gradio_api"
SERVED = (
    *("/assets/", "/static/", "/svelte/", "/theme.css", "/config", "/favicon.ico", "/manifest.json"),
    *(f"{_API}/{one}" for one in ("queue/", "upload", "file=/", "heartbeat/", "startup-events", "app_id", "info")),
    *(f"{_API}/{one}" for one in ("reset", "cancel")),
)
"""All that the page asks for. gradio would serve more, such as files of other hosts."""
_EVENTS = f"{_API}/queue/"


def mount(app: FastAPI, service: Service) -> None:
    """Put the page at `/`, behind all that the application has already."""
    folder = Path(tempfile.mkdtemp(prefix="tagi-page-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when the page is built: uploads and copies of downloads
    gr.mount_gradio_app(
        app,
        Page(service, folder).blocks,
        path="/",
        theme=theme(),
        css_paths=[STYLE],
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=service.settings.body_bytes,
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = _Only(mounted.app)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(own: FastAPI) -> AsyncIterator[Any]:
        cleaning = asyncio.create_task(_clean(folder))
        try:
            async with inner(own) as state:
                yield state
        finally:
            cleaning.cancel()
            shutil.rmtree(folder, ignore_errors=True)

    app.router.lifespan_context = lifespan


class _Only:
    """The page, and nothing else that gradio has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path != "/" and not path.startswith(SERVED):
            await JSONResponse(openai.error("there is no such address", "not_found_error"), 404)(scope, receive, send)
            return
        if path.startswith(_EVENTS) and scope["method"] == "POST":
            body = await Request(scope, receive).body()
            if elsewhere(body):
                said = openai.error("data: names a file that was not uploaded here, or is no JSON")
                await JSONResponse(said, 400)(scope, receive, send)
                return
            receive = replayed(body, receive)
        await self.app(scope, receive, send)


def elsewhere(event: bytes) -> bool:
    """Whether an event of the page names a file by an address, which gradio would fetch for any of its parts; or cannot
    be read."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:  # every name, for one may stand twice
        nonlocal found
        found |= any(name == "path" and isinstance(value, str) and "://" in value for name, value in pairs)

    try:
        json.loads(event, object_pairs_hook=look)
    except (ValueError, RecursionError):
        return True
    return found


async def _clean(folder: Path) -> None:
    while True:
        await asyncio.sleep(EVERY)
        await asyncio.to_thread(remove_old, folder, time.time() - KEPT)


def remove_old(folder: Path, before: float) -> None:
    """Remove what was written before a time, in seconds since 1970."""
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or a folder with something in it
            if file.is_file() and file.stat().st_mtime < before:
                file.unlink()
