"""`tagi export peft`: what it writes is opened by `peft` and answers as our model does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from torch import Tensor
from transformers import T5ForConditionalGeneration

from builders import token_batch, worst
from cli_runs import CONFIG, INSTRUCTION, Run, mistake, trained
from tagi import Tagi, methods
from tagi.config import FusionConfig, HypernetworkConfig
from tagi.model import bank as banks
from tagi.model.adapter import TaskAdapter
from tagi.model.backbone import Factors
from tagi.model.bank import Bank, BankManifest, TeacherEntry, draw_a0
from tagi.model.checkpoint import fingerprint
from tagi.model.peft_files import save_peft
from tagi.model.rows import Rows
from tagi.model.tagi import TagiModel

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
BOUND = 1e-5
"""Logits, fp32; worst measured here 8.3e-7."""


def ours(tagi: Tagi, adapter: TaskAdapter, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return tagi.model.respond(adapter, ids, mask, ids, Rows(1, len(ids))).logits


def no_fusion(tagi: Tagi) -> Tagi:
    """The same backbone without the parts that read an instruction."""
    empty = TagiModel(tagi.model.backbone, methods.get("no_instruction"), HypernetworkConfig(), FusionConfig())
    return Tagi(empty, tagi.tokenizer, tagi.config)


def theirs(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits


@pytest.fixture(scope="module")
def lora_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pure-LoRA method; a rate so high that the generated LoRA moves the logits."""
    training = CONFIG["training"] | {"trainable": ["hypernetwork"], "hypernetwork_lr_scale": 10.0}
    return trained(tmp_path_factory.mktemp("lora"), method="lora_only", training=training)


def test_a_generated_lora_in_peft(tagi: Run, lora_only: Path, tmp_path: Path) -> None:
    assert tagi("adapt", INSTRUCTION, "-o", tmp_path / "adapter", "--checkpoint", lora_only).code == 0
    found = tagi("export", "peft", tmp_path / "adapter", "-o", tmp_path / "peft", "--checkpoint", lora_only, "--json")
    base = str(lora_only / "backbone")
    assert found.json == {"output": str(tmp_path / "peft"), "base": base, "sites": 6, "lost": None}
    model = Tagi.from_pretrained(lora_only)
    ids, mask = token_batch([9, 4], seed=0)
    expected = ours(model, model.load_adapter(tmp_path / "adapter"), ids, mask)
    opened = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path / "peft")
    assert worst(theirs(opened, ids, mask), expected) < BOUND
    assert worst(ours(model, model.neutral(), ids, mask), expected) > 0.01, "the LoRA should move the logits"


def test_what_fusion_loses_is_said(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert tagi("adapt", INSTRUCTION, "-o", tmp_path / "adapter", "--checkpoint", checkpoint).code == 0
    found = tagi("export", "peft", tmp_path / "adapter", "-o", tmp_path / "peft", "--checkpoint", checkpoint)
    assert found.code == 0 and "the encoded instruction is not in PEFT's files" in " ".join(found.err.split())
    assert "the encoded instruction is not in PEFT's files" in (tmp_path / "peft" / "README.md").read_text()


@pytest.fixture
def bank(checkpoint: Path, tmp_path: Path) -> Path:
    """Two teachers with random weights."""
    model = Tagi.from_pretrained(checkpoint).model
    generator = torch.Generator().manual_seed(0)
    sites = model.backbone.sites()
    width_in, width_out = model.backbone.site_shape(sites[0])
    a0 = draw_a0(sites, 2, width_in, generator)
    entry = TeacherEntry(group="sort", tasks=("one",), steps=1, loss=1.0, data_fingerprint="", file="sort.safetensors")
    manifest = BankManifest(
        base=str(checkpoint),
        base_fingerprint=fingerprint(model.backbone),
        reads="no_instruction",
        rank=2,
        scale=0.5,
        teachers=(entry, entry.model_copy(update={"group": "count", "file": "count.safetensors"})),
    )
    lora = {
        site: Factors(torch.stack([a, 2 * a]), torch.randn(2, width_out, 2, generator=generator), 0.5)
        for site, a in a0.items()
    }
    banks.save(Bank(manifest, lora, a0), tmp_path / "bank")
    return tmp_path / "bank"


def test_a_teacher_in_peft(tagi: Run, bank: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = tagi("export", "peft", bank, "--teacher", "count", "-o", tmp_path / "peft")
    assert (result.code, "6 projections" in result.out) == (0, True)
    model = Tagi.from_pretrained(checkpoint)
    teacher = banks.load(bank, model.model.backbone.sites()).teacher("count")
    ids, mask = token_batch([9, 4], seed=0)
    expected = ours(no_fusion(model), replace(model.neutral(), modules=teacher), ids, mask)
    opened = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "peft")  # finds the base by itself
    assert worst(theirs(opened, ids, mask), expected) < BOUND
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], len(written["target_modules"])) == (2, 1.0, 6)


def test_mistakes(tagi: Run, bank: Path, checkpoint: Path, metatrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "peft"
    mistake(tagi("export", "peft", bank, "-o", out), "--teacher: is missing; the bank has sort, count")
    mistake(tagi("export", "peft", bank, "--teacher", "cont", "-o", out), "'cont' is not in the bank")
    mistake(tagi("export", "peft", checkpoint, "--teacher", "count", "-o", out), "is no teacher bank")
    mistake(tagi("export", "peft", tmp_path / "none", "-o", out), "none")
    other = ("--backbone", metatrained / "backbone")
    mistake(tagi("export", "peft", bank, "--teacher", "sort", *other, "-o", out), "another language model")
    assert not out.exists()
    shutil.copytree(bank, out)
    mistake(tagi("export", "peft", bank, "--teacher", "sort", "-o", out), "exists; choose another folder")


def test_only_one_task_fits_into_the_files(tmp_path: Path, bank: Path, checkpoint: Path) -> None:
    lora = banks.load(bank, Tagi.from_pretrained(checkpoint).model.backbone.sites()).lora
    with pytest.raises(ValueError, match="the LoRA of one task"):
        save_peft(lora, "base", tmp_path / "peft", "")
