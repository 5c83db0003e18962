"""`tagi serve` as a program: its page's lines, its end, and what a killed one leaves behind."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import httpx
import pytest
from serving import FIRST, registered
from test_engine import INPUTS, WORDS, make
from typer.main import get_command

from blocks import ROOT, claim, shell
from tagi import Tagi
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.cli.main import app, main
from tagi.serve.guard import hashed

PROGRAM = (sys.executable, "-c", "from tagi.cli.main import run; run()")


@contextmanager
def serving(arguments: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program, once it says where it listens."""
    command = [*PROGRAM, "serve", *arguments]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while (found := re.search(r"http://\S+?:\d+", said)) is None:
            line = process.stderr.readline()
            assert line, f"ended with {process.wait()}: {said}"
            said += line
        with httpx.Client(base_url=found[0], timeout=60) as client:
            for _ in range(600):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    continue
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    make("tagi", family="decoder", max_target=200).save_pretrained(folder)
    return folder


KILLS = 10


def _busy(address: str, seed: int, acknowledged: dict[str, str]) -> None:
    """Register tasks and ask them until nobody answers; what was acknowledged, name by instruction."""
    rng = Random(seed)
    with suppress(httpx.TransportError), httpx.Client(base_url=address, timeout=60) as client:
        while True:
            instruction = " ".join([*rng.choices(WORDS, k=8), "."])
            name = registered(client, instruction)
            acknowledged[name] = instruction
            client.post("/v1/completions", json={"model": name, "prompt": INPUTS[0]}).raise_for_status()


@pytest.mark.slow
def test_killed_under_load_no_acknowledged_task_is_lost(checkpoint: Path, tmp_path: Path) -> None:
    """Four callers register and ask while the program is killed; every answer after it is the engine's."""
    acknowledged: dict[str, str] = {}
    tagi, draw = Tagi.from_pretrained(checkpoint), Random(0)
    arguments = ("--checkpoint", str(checkpoint), "--port", "0", "--store", str(tmp_path / "tasks"))
    for number in range(KILLS + 1):
        with serving(arguments, tmp_path) as (process, address), ThreadPoolExecutor(4) as pool:
            with httpx.Client(base_url=address, timeout=60) as client:
                names = [one["id"] for one in client.get("/v1/models").json()["data"]]
                assert set(acknowledged) <= set(names)
                for name, instruction in draw.sample(list(acknowledged.items()), min(len(acknowledged), 20)):
                    answer = client.post("/v1/completions", json={"model": name, "prompt": INPUTS[0]}).json()
                    assert [answer["choices"][0]["text"]] == tagi.solve(instruction, [INPUTS[0]])
            if number == KILLS:
                break
            before = len(acknowledged)
            busy = [pool.submit(_busy, address, 4 * number + caller, acknowledged) for caller in range(4)]
            while len(acknowledged) < before + draw.randint(3, 12):
                assert not any(one.done() for one in busy), [one.exception() for one in busy if one.done()]
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            for one in busy:
                one.result()
    assert len(acknowledged) >= 3 * KILLS


def test_a_signal_to_stop_lets_open_requests_end(checkpoint: Path, tmp_path: Path) -> None:
    with serving(("--checkpoint", str(checkpoint), "--port", "0"), tmp_path) as (process, address):
        with httpx.Client(base_url=address, timeout=60) as client:
            body = {"instruction": FIRST, "inputs": [*INPUTS] * 40, "max_tokens": 200}
            expected = client.post("/v1/generate", json=body).json()
            with ThreadPoolExecutor() as pool:
                answer = pool.submit(client.post, "/v1/generate", json=body)
                while "tagi_waiting 0.0" in httpx.get(f"{address}/metrics").text:
                    assert not answer.done(), "it was answered before it could be interrupted"
                process.send_signal(signal.SIGTERM)
                assert answer.result().json() == expected
        assert process.wait(timeout=60) == -signal.SIGTERM, "the signal's own code, once all is done"


def test_other_addresses_need_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--store", str(tmp_path / "store")]) == 2
    assert "--keys" in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["key", "-o", str(tmp_path / "keys")]) == 0
    keys = capsys.readouterr().out.split()
    assert len(set(keys)) == 2 and (tmp_path / "keys").read_text().split() == [hashed(key) for key in keys]


NEEDS_SMOLLM2 = pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")
(README,) = claim("README.md", "sh", section="A server")
SHELL, (PYTHON,) = claim("docs/serving.md", "sh"), claim("docs/serving.md", "python")


@contextmanager
def following(lines: Sequence[str], folder: Path) -> Iterator[str]:
    """A server as a page says, on another port, that has answered its calls; gives its address."""
    start, *calls = lines
    assert start.startswith("tagi serve ")
    chosen = shlex.split(start.removesuffix(" --port 8000"))[2:]
    with serving((*chosen, "--port", "0"), folder) as (_, address):
        said = ""
        for line in calls:
            assert line.startswith("curl ")
            here = line.replace("localhost:8000", address)
            said = subprocess.run(here, shell=True, capture_output=True, check=True, text=True).stdout
            assert "error" not in said
        assert '"text":"Oslo"' in said
        yield address


@NEEDS_SMOLLM2
def test_every_line_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with following([line for block in SHELL for line in block.text.splitlines()], tmp_path) as address:
        monkeypatch.chdir(tmp_path)
        exec(PYTHON.text.replace("http://localhost:8000", address), {})
    assert capsys.readouterr().out.splitlines() == ["['Lyon', 'Lima']", "Bergen"]
    assert (tmp_path / "tasks").is_dir() and os.listdir(tmp_path / "tasks")


@pytest.mark.slow  # pip looks at every package
@NEEDS_SMOLLM2
def test_every_line_of_the_readme_runs(tmp_path: Path) -> None:
    """What it installs is only looked for: it is here, or these tests would not run."""
    install, *lines = README.text.splitlines()
    offline = install.replace("pip install", "pip install --dry-run --no-index --no-build-isolation")
    (tmp_path / "checkout").mkdir()
    for name in ("src", "datasets", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "checkout" / name).symlink_to(ROOT / name)
    assert "not provide" not in shell(f"{offline} 2>&1", tmp_path / "checkout")
    with following(lines, tmp_path):
        assert os.listdir(tmp_path / "tasks")


@pytest.mark.parametrize("file", ["Dockerfile", "docs/serving.md"])
def test_containers_and_units_call_the_command_as_it_is(file: str) -> None:
    """With every option that they name."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(r"^CMD (\[.*\])$|^ExecStart=\S*/(tagi .*)$", text, re.MULTILINE)
    assert found is not None
    command = json.loads(found[1]) if found[1] else shlex.split(found[2])
    assert command[:2] == ["tagi", "serve"] and "--keys" in command
    options = {option for one in get_command(app).commands["serve"].params for option in one.opts}  # type: ignore[attr-defined]
    assert {one for one in command if one.startswith("--")} <= options
