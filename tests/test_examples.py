"""The scripts of examples/ run as they stand; on a small checkpoint where the real one would add nothing but time."""

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_export_decoder import chatting
from test_serve_command import serving

from tagi import methods
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.backbones.language_model import save_language_model
from tagi.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS_SMOLLM2 = pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")
Script = Callable[..., list[str]]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs one in an empty folder beside the repository's configs; gives the lines that it printed."""

    def run(name: str, *arguments: object) -> list[str]:
        (tmp_path / "configs").symlink_to(EXAMPLES.parent / "configs")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                pytest.fail(capsys.readouterr().err)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A random decoder-only TAGI, which reads any text, and its language model."""
    tagi = chatting("adapted")
    tagi.save_pretrained(tmp_path / "small")
    save_language_model(tagi.model.backbone, tmp_path / "base")
    tagi.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "small", tmp_path / "base"


def test_every_example_is_run_here() -> None:
    names = {file.name for file in EXAMPLES.glob("*.py")}
    assert len(names) == 5 and all(f'"{name}"' in Path(__file__).read_text(encoding="utf-8") for name in names)


@NEEDS_SMOLLM2
def test_a_sentence_is_compiled_into_a_function(script: Script, tmp_path: Path) -> None:
    assert script("compile_a_function.py") == ["Oslo", "['Lyon', 'Lima']", "Oslo", "Bergen", "Oslo", "['Rome']"]
    assert (tmp_path / "city" / "adapter.safetensors").exists()


def test_many_tasks_are_served_in_one_batch(
    script: Script, small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--checkpoint", str(small[0]), "--port", "0", "--store", str(tmp_path / "tasks"))
    with serving(options, tmp_path) as (_, address):
        monkeypatch.setenv("TAGI_SERVER", address)
        engine, server = script("serve_many_tasks.py", small[0])
    assert engine == server and list(ast.literal_eval(engine)) == ["city", "mood", "shout"]


def test_training_on_tasks_of_ones_own(script: Script, tmp_path: Path) -> None:
    shape = "{vocab_size: 80, d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_decoder_layers: 1, num_heads: 2}"
    small = [f"backbone={{tokenizer: unigram, shape: {shape}}}", "prompt.style=plain", "training.steps=2"]
    target = ["hypernetwork.target_modules=[q, v]", "training.checkpoint_every=2", f"output={tmp_path / 'mine'}"]
    printed = script("train_on_your_tasks.py", *small, *target)
    assert printed[0] == str(tmp_path / "mine" / "final") and printed[1].startswith("['")
    assert len((tmp_path / "mine" / "log.jsonl").read_text(encoding="utf-8").splitlines()) >= 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_an_adapter_is_exported_and_opened_in_peft(script: Script, small: tuple[Path, Path], tmp_path: Path) -> None:
    theirs, ours = script("export_to_peft.py", *small)
    assert theirs.removeprefix("peft:") == ours.removeprefix("tagi:")
    assert (tmp_path / "city-peft" / "adapter_config.json").exists()


def test_a_method_is_added(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", methods.METHODS)  # what the script adds is gone after it
    printed = script("add_a_method.py", tmp_path / "lora-prefix")
    assert any("lora_prefix" in line for line in printed)
    assert main(["run", "a.", "--input", "b", "--checkpoint", str(tmp_path / "lora-prefix" / "final")]) == 0
