"""Registered tasks in vLLM's own server: the plugin writes each adapter at its first request; the answers are ours."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cases import answers, ended, python_of
from test_chat import made

from answering import lively_decoder
from builders import model_config, small_tagi, trained
from tagi import Tagi
from tagi.backbones.language_model import save_language_model
from tagi.config import PromptConfig
from tagi.data.types import Instruction
from tagi.serve.registry import TaskRegistry
from tagi.serve.store import AdapterStore
from tagi.serve.vllm import CHECKPOINT, FOLDER, STORE

pytestmark = pytest.mark.engines
TASKS, MOST, PATIENCE = 20, 8, 600
"""Tasks that nobody asked for before; tokens of an answer at most; seconds that vLLM may take to start."""
TEXTS = ("a b", "one two three", "Where is Oslo?")


def small(folder: Path) -> tuple[Tagi, str]:
    """A random Llama whose heads are as wide as vLLM's kernels need them, and where vLLM finds it."""
    backbone, base = lively_decoder(3, vocab_size=260, max_positions=256, head_dim=32), folder / "base"
    save_language_model(backbone, base)
    made().save_pretrained(base)
    model, settings = trained(small_tagi("lora_only", backbone=backbone)), PromptConfig(style="chat", max_target=MOST)
    return Tagi(model, made(), model_config(model, str(base)).model_copy(update={"prompt": settings})), str(base)


@contextmanager
def vllm(base: str, log: Path, **env: str) -> Iterator[httpx.Client]:
    """vLLM's server, with a socket in place of a port."""
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # a core of its own may be busy with other work
    with tempfile.TemporaryDirectory() as place, log.open("w") as file:
        options = ["--uds", f"{place}/vllm", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "4"]
        options += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
        # `vllm serve` asks for the version of a package `vllm`, which its CPU build does not have.
        command = [str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", base, *options]
        own = os.environ | {"HF_HUB_OFFLINE": "1"} | env
        server = subprocess.Popen(command, stdout=file, stderr=file, env=own, start_new_session=True)
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=f"{place}/vllm"), base_url="http://vllm", timeout=PATIENCE
            ) as client:
                _wait(client, server, log)
                yield client
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)  # its workers too
            server.wait()


def _wait(client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start: {log.read_text()[-6000:]}")


def test_engines_vllm_answers_tasks_by_name(tmp_path: Path) -> None:
    """Two first requests of each at once; in fp32."""
    tagi, base = small(tmp_path)
    tagi.save_pretrained(tmp_path / "checkpoint")
    told = [Instruction(f"Answer in {number} words.") for number in range(TASKS)]
    with AdapterStore(tagi, tmp_path / "store") as store:
        registry = TaskRegistry(store)
        names = [registry.add(one)[0].name for one in told]
        registry.close()
    prompts = [tagi.collator.input(None, text) for text in TEXTS]
    env = {STORE: str(tmp_path / "store"), CHECKPOINT: str(tmp_path / "checkpoint")}
    with vllm(base, tmp_path / "log", **env) as client:

        def ask(name: str) -> httpx.Response:
            body = {"prompt": prompts, "max_tokens": MOST, "temperature": 0, "return_token_ids": True}
            return client.post("/v1/completions", json=body | {"model": name})

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, [name for name in names for _ in range(2)]))
        unknown = ask("nobody")
        models = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert unknown.status_code == 404 and "`nobody` does not exist" in unknown.text
    ends = tagi.model.backbone.end_ids
    theirs = [[ended(choice["token_ids"], ends) for choice in one.json()["choices"]] for one in found]
    ours = [answers(tagi.model, tagi.model.prepare(tagi.adapt(one)), prompts, MOST) for one in told]
    assert theirs[::2] == theirs[1::2] == ours
    assert len({str(own) for own in ours}) > TASKS / 2, "adapters differ"
    assert models == [base, *models[1:]] and sorted(models[1:]) == sorted(names), "each is loaded once"
    assert len(list((tmp_path / "store" / FOLDER).glob("*/*"))) == TASKS, "nothing else is left behind"
