"""`tagi serve`: tasks by name over HTTP; `tagi key`: who may use it."""

from __future__ import annotations

import ipaddress
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, open_tagi, stderr
from tagi.errors import ConfigError, InputError

EXAMPLE = "Example: tagi serve --store tasks --port 8000"
KEY_EXAMPLE = "Example: tagi key -o keys.txt"
DRAIN = 30
"""Seconds that open requests have after a signal to stop."""


def serve(
    store: Annotated[Path, typer.Option(metavar="DIR", help="Where tasks and their adapters are kept.")] = Path(
        "tasks"
    ),
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than this machine's need --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hashes of the keys that open it, see `tagi key`.")
    ] = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    waiting: Annotated[
        int, typer.Option(min=1, help="Inputs that may wait; beyond it callers are told to come later.")
    ] = 1024,
    seconds: Annotated[float, typer.Option(min=1, help="That a request may take.")] = 120.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page for the browser, at /.")] = True,
) -> None:
    """Serve tasks by name: OpenAI's endpoints, ad-hoc instructions, choices, adapters for other engines."""
    try:
        import uvicorn

        from tagi.serve.app import create_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name}: is not installed; pip install 'tagi[serve]' brings it") from error
    from tagi.serve.guard import Settings, read_keys
    from tagi.serve.service import Service, base_name

    if keys is None and not _loopback(host):
        raise InputError(f"--host: {host} can be reached by others; give --keys FILE, which `tagi key` writes")
    settings = Settings(keys=tuple(read_keys(keys)) if keys else (), most_waiting=waiting, seconds=seconds)
    tagi = open_tagi(checkpoint, backbone)
    base = base_name(tagi)
    app = create_app(Service(tagi, store, settings, base=base), page=page)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_level="warning", timeout_graceful_shutdown=DRAIN
    )
    server = uvicorn.Server(config)
    opened = config.bind_socket()
    at = f"http://{host}:{opened.getsockname()[1]}"
    stderr().print(f"tagi serves {base} at {at}, its API at /docs", soft_wrap=True)
    server.run(sockets=[opened])


def key(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file of hashes to add to.")],
) -> None:
    """Make a key for `tagi serve --keys FILE`: the file gets its hash, the key itself is printed this once."""
    from tagi.serve.guard import hashed, new_key

    made = new_key()
    with output.open("a", encoding="utf-8") as file:
        file.write(f"{hashed(made)}\n")
    typer.echo(made)


def _loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
