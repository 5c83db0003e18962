"""The backbone and its metatrained form in `weights/`: what their cards promise."""

from pathlib import Path

import torch

from tagi import Tagi
from tagi.config.files import RUN_FILE, load
from tagi.data.sources.sni_files import SniDataset
from tagi.eval.evaluate import draw_partners, evaluate

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights"
METATRAINED = WEIGHTS / "backbone-metatrained"
MOST = 40e6
"""Bytes of both together."""


def test_they_are_small_and_safetensors_only() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST
    assert {file.suffix for file in files} == {".safetensors", ".json", ".yaml", ".md"}


def test_the_metatrained_form_was_trained_by_the_committed_config() -> None:
    """But for the share of the rows that each of two processes had."""
    recorded, committed = load(METATRAINED / RUN_FILE), load(ROOT / "configs" / "backbone" / "metatrain-last.yaml")
    alone = committed.training.model_copy(
        update={"precision": "bf16", "tasks_per_batch": committed.training.tasks_per_batch // 2}
    )
    assert recorded == committed.model_copy(update={"training": alone})


def test_it_reads_its_instruction(shared_data: Path) -> None:
    """The first two rows of every unseen task, in bf16 as kept; all rows are in docs/results/backbone.md."""
    dataset = SniDataset(shared_data / "sni")
    tasks = [dataset.load(name, limit=2) for name in dataset.english(dataset.names("test"))]
    tagi = Tagi.from_pretrained(METATRAINED, dtype=torch.bfloat16)
    scores = {
        told: evaluate(tagi, tasks, instruction=told, partners=draw_partners(tasks, 0)).rouge_l
        for told in ("aligned", "shuffled")
    }
    assert sum(scores["aligned"]) > sum(scores["shuffled"])
