"""Every reader on malformed files: results or one sentence that names the file, and nothing else.

2,000 changed files for each reader in `make test-slow`, 50 in `make test`.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_runs import CONFIG
from malformed import Change, refusal, tensor_changes, text_changes
from tagi.cli.solving import read_file
from tagi.config import files as config_files
from tagi.data.sources.c4 import documents
from tagi.data.sources.p3_files import P3Dataset
from tagi.data.sources.sni_files import SniDataset
from tagi.data.types import Instruction
from tagi.eval.report import read_predictions
from tagi.infer.engine import Tagi
from tagi.model.adapter import TaskAdapter
from tagi.model.peft_files import load_peft, save_peft

TEMPLATES = """
dataset: super_glue
subset: rte
templates:
  5a: !Template
    answer_choices: Yes ||| No
    id: 5a
    jinja: '{{ premise }} {% if label is defined %}Is it {{ answer_choices | join(" or ") }}?{% endif %} ||| {{
      answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      original_task: true
    name: does it follow
    reference: ''
"""
TASK = {
    "Categories": ["Copying"],
    "Definition": ["Repeat the input."],
    "Positive Examples": [{"input": "red", "output": "red", "explanation": ""}],
    "Instances": [{"id": f"i{n}", "input": f"dog {n}", "output": ["dog", "cat"]} for n in range(3)],
    "Input_language": ["English"],
}
PREDICTION = {
    "Task": "t",
    "Categories": ["c"],
    "Definition": ["Repeat."],
    "Positive Examples": [{"input": "a", "output": "b"}],
    "Instance": {"id": "1", "input": "a", "output": ["c"]},
    "Prediction": "d",
}


@dataclass(frozen=True)
class Reader:
    """A folder of valid files, the one that is changed, and what reads it."""

    file: str
    read: Callable[[Path], object]
    write: Callable[[Path, Path], None]
    """Writes the folder; is given a checkpoint's folder too."""
    changes: st.SearchStrategy[Change] = text_changes


def _files(**contents: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, _: Path) -> None:
        for name, text in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


def _lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


_SNI = {
    "tasks/t.json": json.dumps(TASK),
    "splits/default/test_tasks.txt": "t\n",
    "splits/default/train_tasks.txt": "t\n",
}
_P3 = {
    "templates/super_glue/rte/templates.yaml": TEMPLATES,
    "eval/super_glue_rte.jsonl": _lines(*({"premise": f"It rains {n}.", "label": n % 2} for n in range(3))),
    "train/super_glue_rte_does_it_follow.jsonl": _lines(
        *({"inputs_pretokenized": f"in {n}", "targets_pretokenized": "out"} for n in range(3))
    ),
}


def _read_sni(folder: Path) -> object:
    dataset = SniDataset(folder)
    return [dataset.load(name) for name in dataset.by_language(dataset.names("test"))[0]]


def _read_p3(folder: Path) -> object:
    dataset = P3Dataset(folder, "all")
    trained = [dataset.train_tasks(one) for one in dataset.train_sets()]
    return trained, dataset.eval_tasks("super_glue_rte"), list(dataset.eval_texts())


def _copy(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)


def _save_adapter(folder: Path, checkpoint: Path) -> None:
    Tagi.from_pretrained(checkpoint).adapt(Instruction("Repeat.")).save_pretrained(folder)


def _save_lora(folder: Path, checkpoint: Path) -> None:
    model = Tagi.from_pretrained(checkpoint)
    lora = model.adapt(Instruction("Repeat.")).modules
    save_peft(lora, model.model.backbone, "base", folder, "a test", fingerprint="0")
    shutil.copytree(checkpoint, folder / "model")


def _read_lora(folder: Path) -> object:
    return load_peft(folder, Tagi.from_pretrained(folder / "model").model.backbone, "0")


READERS = {
    "sni_task": Reader("tasks/t.json", _read_sni, _files(**_SNI)),
    "sni_split": Reader("splits/default/test_tasks.txt", _read_sni, _files(**_SNI)),
    "p3_templates": Reader("templates/super_glue/rte/templates.yaml", _read_p3, _files(**_P3)),
    "p3_held_out": Reader("eval/super_glue_rte.jsonl", _read_p3, _files(**_P3)),
    "p3_training": Reader("train/super_glue_rte_does_it_follow.jsonl", _read_p3, _files(**_P3)),
    "c4": Reader(
        "c.json", lambda folder: list(documents([folder / "c.json"])), _files(**{"c.json": _lines({"text": "a b"}) * 2})
    ),
    "inputs": Reader(
        "i.jsonl", lambda folder: read_file(folder / "i.jsonl"), _files(**{"i.jsonl": _lines({"input": "a"}) * 2})
    ),
    "predictions": Reader(
        "p.jsonl", lambda folder: read_predictions(folder / "p.jsonl"), _files(**{"p.jsonl": _lines(PREDICTION) * 2})
    ),
    "config": Reader(
        "run.yaml",
        lambda folder: config_files.load(folder / "run.yaml"),
        _files(**{"run.yaml": yaml.safe_dump(CONFIG | {"output": "runs"})}),
    ),
    "checkpoint_config": Reader("tagi.json", Tagi.from_pretrained, _copy),
    "checkpoint_weights": Reader("model.safetensors", Tagi.from_pretrained, _copy, tensor_changes),
    "adapter": Reader("adapter.safetensors", TaskAdapter.from_pretrained, _save_adapter, tensor_changes),
    "peft_config": Reader("adapter_config.json", _read_lora, _save_lora),
    "peft_weights": Reader("adapter_model.safetensors", _read_lora, _save_lora, tensor_changes),
}


def check(reader: Reader, examples: int, folder: Path, checkpoint: Path) -> None:
    """So many changed files are read or refused."""
    reader.write(folder, checkpoint)
    file = folder / reader.file
    valid = file.read_bytes()
    assert refusal(lambda: reader.read(folder)) == ""

    @settings(
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=examples < 100,
    )
    @given(change=reader.changes)
    def changed(change: Change) -> None:
        file.write_bytes(change(valid))
        said = refusal(lambda: reader.read(folder))
        named = str(folder) in said or reader.file == "tagi.json"  # which may name a backbone that lies elsewhere
        assert not said or (named and "\n" not in said), said

    changed()


@pytest.mark.parametrize("name", READERS)
def test_malformed_files_are_read_or_refused(name: str, tmp_path: Path, checkpoint: Path) -> None:
    check(READERS[name], 50, tmp_path, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_malformed_files_are_read_or_refused(name: str, tmp_path: Path, checkpoint: Path) -> None:
    check(READERS[name], 2_000, tmp_path, checkpoint)
