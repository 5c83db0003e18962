"""Uploading: a hub gets exactly the files that `save_pretrained` writes, and gives back what works."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fake_hub import FakeHub, fake_hub
from tagi import Tagi, TaskAdapter
from test_engine import INPUTS, INSTRUCTIONS, make


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as opened:
        monkeypatch.setattr(constants, "ENDPOINT", opened.endpoint)
        template = f"{opened.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield opened


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
