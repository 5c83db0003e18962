"""Adapters of decoder-only models in the files of engines: the instruction becomes a text that stands before inputs."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from test_chat import made
from transformers import AutoModelForCausalLM

from answering import lively_decoder
from builders import SMALL_FUSION, SMALL_HYPERNETWORK, model_config, small_tagi, trained, worst
from tagi import Tagi
from tagi.backbones.language_model import save_language_model
from tagi.backbones.rows import Rows
from tagi.config import HypernetworkConfig, PromptConfig
from tagi.errors import CheckpointError
from tagi.infer.export import Export, from_adapter, write_gguf, write_merged, write_peft

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
TOLD, TEXTS = "Reverse the words.", ("a b", "one two three", "x")
BOUND = 1e-4  # worst 3.6e-6, logits up to 7
PREFIXES = pytest.mark.parametrize("prefix", ["base", "adapted"])


STATES = HypernetworkConfig(rank=4, bias="learned", generator="states", target_modules=("q", "k", "v", "o", "up"))


def chatting(
    prefix: str, method: str = "tagi", style: str = "chat", hypernetwork: HypernetworkConfig = SMALL_HYPERNETWORK
) -> Tagi:
    fusion = SMALL_FUSION.model_copy(update={"prefix": prefix})
    backbone = lively_decoder(3, vocab_size=260, max_positions=256)
    model = trained(small_tagi(method, fusion=fusion, backbone=backbone, hypernetwork=hypernetwork))
    settings = PromptConfig.model_validate({"style": style, "max_target": 8})
    config = {"prompt": settings, "fusion": fusion, "hypernetwork": hypernetwork}
    return Tagi(model, made(), model_config(model).model_copy(update=config))


def exported(tagi: Tagi, folder: Path, **how: Any) -> Export:
    """The export of an adapter that was saved, its language model in `base`."""
    tagi.adapt(TOLD).save_pretrained(folder / "adapter")
    save_language_model(tagi.model.backbone, folder / "base")
    return from_adapter(tagi, folder / "adapter", str(folder / "base"), folder / "base", **how)


def first_logits(tagi: Tagi, text: str) -> torch.Tensor:
    """Of the first answer token, by our engine's own way."""
    ids = torch.tensor([tagi.collator.input(None, text, follows=tagi.model.method.fuses_decoder)])
    prepared = tagi.model.prepare(tagi.adapt(TOLD))
    return tagi.model.backbone.begin(ids, torch.ones_like(ids), prepared=prepared, rows=Rows(1, 1))[0][0]


def as_text(tagi: Tagi, context: str, text: str) -> torch.Tensor:
    """Ids of the whole text, tokenized at once as an engine does it."""
    _, tail = tagi.collator._around()
    return torch.tensor([tagi.tokenizer(f"{context}\n\nInput: {text}{tail}")["input_ids"]])


@torch.inference_mode()
@PREFIXES
def test_engines_peft_says_the_same_behind_the_text(prefix: str, tmp_path: Path) -> None:
    """As activated LoRA behind the base model's prefix, as plain LoRA behind that of the adapted one."""
    tagi = chatting(prefix)
    found = exported(tagi, tmp_path)
    assert found.lost is None and found.context is not None
    assert bool(found.context.invocation) == (prefix == "base")
    write_peft(found, tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    assert found.context.text in (tmp_path / "peft" / "README.md").read_text()
    for text in TEXTS:
        logits = theirs(input_ids=as_text(tagi, found.context.text, text)).logits[0, -1]
        assert worst(logits, first_logits(tagi, text)) < BOUND


@torch.inference_mode()
@pytest.mark.parametrize("hypernetwork", [SMALL_HYPERNETWORK, STATES], ids=["mlp", "states"])
def test_engines_peft_applies_a_lora_alone_to_the_input_alone(hypernetwork: HypernetworkConfig, tmp_path: Path) -> None:
    tagi = chatting("base", "lora_only", hypernetwork=hypernetwork)
    found = exported(tagi, tmp_path)
    assert found.lost is None and found.context is None
    write_peft(found, tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    for text in TEXTS:
        ids = torch.tensor([tagi.collator.input(None, text)])
        assert worst(theirs(input_ids=ids).logits[0, -1], first_logits(tagi, text)) < BOUND


@torch.inference_mode()
@PREFIXES
def test_merged_weights_hold_a_lora_that_is_active_from_the_start(prefix: str, tmp_path: Path) -> None:
    tagi = chatting(prefix)
    tagi.tokenizer.save_pretrained(tmp_path / "base")
    found = exported(tagi, tmp_path, alone=True)
    assert (found.lost is None) == (found.context is not None) == (prefix == "adapted")
    if found.context is None:
        return
    write_merged(found, tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for text in TEXTS:
        logits = theirs(input_ids=as_text(tagi, found.context.text, text)).logits[0, -1]
        assert worst(logits, first_logits(tagi, text)) < BOUND


def test_without_a_chat_nothing_says_where_the_lora_begins(tmp_path: Path) -> None:
    found = exported(chatting("base", style="plain"), tmp_path)
    assert found.context is None and found.lost is not None


@PREFIXES
def test_engines_gguf_is_what_llama_cpp_s_converter_writes(prefix: str, tmp_path: Path) -> None:
    """Queries and keys permuted by `LlamaModel.permute` of its `convert_hf_to_gguf.py`, written out here."""
    tagi = chatting(prefix)
    found = exported(tagi, tmp_path)
    assert found.context is not None
    write_gguf(found, tmp_path / "gguf")
    reader = gguf.GGUFReader(tmp_path / "gguf" / "adapter.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter" and said["adapter.type"] == "lora"
    assert said["general.architecture"] == "llama"
    (scale,) = {factors.scale for factors in found.lora.values()}
    assert said["adapter.lora.alpha"] == scale * tagi.config.hypernetwork.rank
    tokens = reader.fields.get("adapter.alora.invocation_tokens")
    assert tuple(said.get("adapter.alora.invocation_tokens", ())) == found.context.invocation[1:]  # see `write_gguf`
    assert tokens is None or tokens.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(found.lora)
    heads = {"q": tagi.model.backbone.shape.num_heads, "v": None}
    for site, factors in found.lora.items():
        name = f"blk.{site.layer}.attn_{site.place}.weight"
        a, b = factors.a[0].numpy(), factors.b[0].numpy()
        if (n := heads[site.place]) is not None:
            b = b.reshape(n, 2, b.shape[0] // n // 2, *b.shape[1:]).swapaxes(1, 2).reshape(b.shape)
        assert np.array_equal(tensors[f"{name}.lora_a"], a), site
        assert np.array_equal(tensors[f"{name}.lora_b"], b), site


def test_engines_gguf_of_a_t5_is_refused(tmp_path: Path) -> None:
    from test_engine import make

    tagi = make("lora_only")
    tagi.adapt("a b .").save_pretrained(tmp_path / "adapter")
    found = from_adapter(tagi, tmp_path / "adapter", "base", tmp_path)
    with pytest.raises(CheckpointError, match=r"^a LoRA of T5 cannot be written as GGUF"):
        write_gguf(found, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()
