"""The bundled default, SmolLM2-135M-Instruct with its hypernetwork: what README and model card promise."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from cli_runs import Run
from tagi import Tagi
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.bundled import CHECKPOINTS, checkpoint, everyday
from tagi.config import DataConfig
from tagi.data.sources.everyday import Everyday
from tagi.eval.evaluate import draw_partners, evaluate

needs_smollm2 = pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")


@pytest.fixture(scope="module")
def default() -> Tagi:
    return Tagi.from_pretrained()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_bundled_is_small_and_safetensors_only(name: str) -> None:
    folder = checkpoint(name)
    assert folder is not None
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") <= 20e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".yaml", ".md", ".jinja"}


@needs_smollm2
def test_smollm2_prompts_are_tokenized_as_a_whole_text_is(default: Tagi) -> None:
    """So that engines that are given text read what we read."""
    tasks = Everyday(DataConfig(source="everyday", path=str(everyday()))).test(0)
    head, tail = default.collator._around()
    for task in tasks:
        text = task.examples[0].input
        parts = default.collator.instruction(task.instruction) + default.collator.input(None, text, follows=True)
        whole = f"{head}{task.instruction.definition}\n\nInput: {text.strip()}{tail}"
        assert parts == default.tokenizer(whole)["input_ids"], task.name


@needs_smollm2
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_smollm2_follows_unseen_everyday_instructions_and_no_other(name: str) -> None:
    """Ten tasks × 2 of everyday/test; the whole is in docs/results/smollm2.md."""
    model = Tagi.from_pretrained(name)
    tasks = Everyday(DataConfig(source="everyday", path=str(everyday()))).test(0)[:10]
    few = [replace(task, examples=task.examples[:2]) for task in tasks]
    partners = draw_partners(few, 0)
    right, mismatched = (
        fmean(evaluate(model, few, instruction=told, partners=partners).rouge_l) for told in ("aligned", "shuffled")
    )
    assert right > mismatched + 0.1


@needs_smollm2
@torch.inference_mode()
def test_smollm2_adapter_comes_back_and_answers_the_same(default: Tagi, tagi: Run, tmp_path: Path) -> None:
    told, text = "Name the city in the text.", "We met in Oslo last May."
    city = default.task(told)
    city.save_pretrained(tmp_path / "city")
    assert tagi("run", "--adapter", tmp_path / "city", "--input", text).out == f"{city(text)}\n"
    assert city("We met in Oslo last May.")
