"""The plugin for vLLM without vLLM: one folder a task, whoever asks, and what cannot be one is said in a sentence."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine import INSTRUCTIONS, make

from tagi.backbones.lora import delta
from tagi.data.types import Instruction
from tagi.errors import ConfigError
from tagi.model.peft_files import load_peft
from tagi.serve import vllm
from tagi.serve.registry import TaskRegistry
from tagi.serve.store import AdapterStore
from tagi.serve.vllm import AdapterFolders


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, str]:
    """A store with two tasks, and the checkpoint that writes their adapters."""
    tagi = make("lora_only", family="decoder")
    tagi.save_pretrained(tmp_path / "checkpoint")
    with AdapterStore(tagi, tmp_path / "store") as store:
        registry = TaskRegistry(store)
        for name, told in zip(("first", "second"), INSTRUCTIONS, strict=False):
            registry.add(Instruction(told), name=name)
        registry.close()
    return tmp_path / "store", str(tmp_path / "checkpoint")


def test_a_task_becomes_a_folder_once(places: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folders, written = AdapterFolders(*places), list[Path]()
    write = vllm.write_peft
    monkeypatch.setattr(vllm, "write_peft", lambda export, folder: (written.append(folder), write(export, folder)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(folders.find, ["first", "second"] * 8))
    assert len(written) == 2 and set(found) == set(written) and folders.find("nobody") is None
    tagi = make("lora_only", family="decoder")
    for folder, told in zip(found[:2], INSTRUCTIONS, strict=False):
        assert folder is not None
        lora, own = load_peft(folder, tagi.model.backbone, tagi.config.backbone_fingerprint), tagi.adapt(told).modules
        for site, factors in own.items():
            torch.testing.assert_close(delta(lora[site]), delta(factors))
    assert AdapterFolders(*places).find("first") == found[0], "another process finds the same"


def test_adapters_that_are_more_than_lora_are_refused(tmp_path: Path) -> None:
    make("tagi", family="decoder").save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="more than a LoRA"):
        AdapterFolders(tmp_path / "store", str(tmp_path / "checkpoint")).find("first")


def test_vllm_is_given_what_it_asks_for(places: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {}
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")}
    modules["vllm.lora.request"].LoRARequest = SimpleNamespace  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolver = object  # type: ignore[attr-defined]
    registry = SimpleNamespace(register_resolver=known.__setitem__)
    modules["vllm.lora.resolver"].LoRAResolverRegistry = registry  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    vllm.register()
    assert known == {}, "without a store there is nothing to resolve"
    monkeypatch.setenv(vllm.STORE, str(places[0]))
    with pytest.raises(ConfigError, match=vllm.CHECKPOINT):
        vllm.register()
    monkeypatch.setenv(vllm.CHECKPOINT, places[1])
    vllm.register()
    first, second, nobody = (asyncio.run(known["tagi"].resolve_lora("base", one)) for one in ("first", "second", "no"))
    assert nobody is None and first.lora_name == "first" and Path(first.lora_path).is_dir()
    assert 0 < first.lora_int_id < 2**31 and first.lora_int_id != second.lora_int_id
