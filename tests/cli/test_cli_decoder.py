"""A published decoder-only model from the command line: trained, scored, asked, and what such a run cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cli_runs import CONFIG, INSTRUCTION, Run, mistake, write_config
from tagi import Tagi
from tagi.backbones.language_model import load_language_model
from tagi.config.files import load
from tagi.data.types import Instruction
from tagi.errors import ConfigError
from tagi.eval.report import read_predictions
from tagi.eval.rouge import exact_match
from tagi.train.build import build_stage
from tagi.train.teachers import plan_teachers
from training_runs import run


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's: bytes, one special token, which it puts nowhere, and no padding."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {one: number + 1 for number, one in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny GPT-2 as the hub would give it, without our hands in it."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def trained_on(folder: Path, **changes: Any) -> Path:
    return run(load(write_config(folder, **changes), []))


METATRAIN: dict[str, Any] = {
    "stage": "metatrain",
    "method": "metatrain",
    "prompt": {"style": "plain", "max_instruction": 128, "max_input": 64, "max_target": 32},
    "training": CONFIG["training"] | {"trainable": ["backbone"]},
}
FINETUNE: dict[str, Any] = METATRAIN | {
    "stage": "finetune",
    "method": "tagi",
    "training": CONFIG["training"] | {"trainable": ["hypernetwork"]},
}


def test_a_published_checkpoint_is_trained_scored_and_asked(gpt2: Path, tagi: Run, tmp_path: Path) -> None:
    final = trained_on(tmp_path, **METATRAIN | {"backbone": {"path": str(gpt2)}})
    trained, before = load_language_model(final / "backbone"), load_language_model(gpt2)
    moved = [not torch.equal(*pair) for pair in zip(trained.parameters(), before.parameters(), strict=True)]
    assert all(moved), "every weight was trained"
    scores = tmp_path / "scores"
    scored = tagi("eval", "micro", "--checkpoint", final, "--tasks", 2, "--instances", 2, "-o", scores, "--json").json
    predictions = read_predictions(scores / "predictions.jsonl")
    right = [exact_match(one.text, one.example.targets) for one in predictions]
    assert (scored["n"], scored["exact_match"]) == (len(right), sum(right) / 4) and len(right) == 4
    model, told = Tagi.from_pretrained(final), predictions[0].instruction
    alone = model.solve(Instruction(INSTRUCTION), ["red wolf saw dog plum"])
    assert model.solve(told, [predictions[0].example.input]) == [predictions[0].text]
    asked = tagi("run", INSTRUCTION, "--checkpoint", final, "--input", "red wolf saw dog plum")
    assert (asked.code, asked.out) == (0, f"{alone[0]}\n")
    changes = {"backbone": None, "start_from": str(final), "output": str(tmp_path / "second")}
    again = load_language_model(trained_on(tmp_path, **METATRAIN | changes) / "backbone")
    assert not any(torch.equal(*pair) for pair in zip(again.parameters(), trained.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["base", "adapted"])
def test_a_generator_for_a_frozen_published_checkpoint(prefix: str, gpt2: Path, tagi: Run, tmp_path: Path) -> None:
    """Trained, and asked through an adapter on disk; the language model lies where it lay, as it was."""
    changes = FINETUNE | {"backbone": {"path": str(gpt2)}, "fusion": {"prefix": prefix}}
    final = trained_on(tmp_path, **changes)
    assert not (final / "backbone").exists()
    model = Tagi.from_pretrained(final)
    expected = load_language_model(gpt2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.model.backbone.state_dict().items())
    assert tagi("adapt", INSTRUCTION, "--checkpoint", final, "-o", tmp_path / "adapter").code == 0
    asked = tagi("run", "--adapter", tmp_path / "adapter", "--checkpoint", final, "--input", "red wolf")
    answer = model.solve(INSTRUCTION, ["red wolf"])[0]
    assert (asked.code, asked.out) == (0, f"{answer}\n")


SHAPE = {
    "family": "opt", "vocab_size": 8, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
    "head_dim": 8, "max_positions": 256, "learned": {"offset": 2}, "norm": "layer", "activation": "relu",
    "gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("changes", [METATRAIN, FINETUNE], ids=["metatrain", "tagi"])
def test_a_random_one_is_trained_from_scratch_and_asked(changes: dict[str, Any], tagi: Run, tmp_path: Path) -> None:
    final = trained_on(tmp_path, **changes | {"backbone": {"tokenizer": "micro", "decoder": SHAPE}})
    model = Tagi.from_pretrained(final)
    assert model.model.backbone.shape.vocab_size > SHAPE["vocab_size"], "as large as the tokenizer"
    asked = tagi("run", INSTRUCTION, "--checkpoint", final, "--input", "red wolf saw dog")
    assert (asked.code, asked.out) == (0, model.solve(INSTRUCTION, ["red wolf saw dog"])[0] + "\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            FINETUNE | {"method": "fid_icl", "training": METATRAIN["training"]},
            ["method: fid_icl encodes demonstrations apart", "gpt2 is a decoder-only model"],
        ),
        (FINETUNE | {"method": "lora_fusion"}, ["method: lora_fusion fuses the instruction into an encoder"]),
        (
            FINETUNE | {"hypernetwork": {"target_modules": ["q", "gate"]}},
            ["target_modules: gate: the MLP of this language model has no gate"],
        ),
        ({"prompt": {"max_instruction": 200}}, ["prompt: max_instruction + max_input + max_target", "256 positions"]),
    ],
)
def test_what_a_decoder_only_run_cannot_be(
    changes: dict[str, Any], words: list[str], gpt2: Path, tagi: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path, **METATRAIN | {"backbone": {"path": str(gpt2)}} | changes)
    mistake(tagi("train", changes.get("stage", "metatrain"), "--config", config), *words)


def test_a_batch_is_joined_as_an_answer_s_prompt_is(tmp_path: Path) -> None:
    """A tokenizer's end token stands behind the whole prompt, not between instruction and input."""
    values = FINETUNE | {"backbone": {"tokenizer": "micro", "decoder": SHAPE}}
    stage = build_stage(load(write_config(tmp_path, **values)))
    batch = stage.batch(0)
    assert not (batch.instruction_ids == 1).any()
    assert [row[real].tolist().index(1) for row, real in zip(batch.input_ids, batch.input_mask, strict=True)] == (
        batch.input_mask.sum(1) - 1
    ).tolist()
    bank = {"stage": "teachers", "method": "no_instruction", "teachers": {}}
    assert plan_teachers(load(write_config(tmp_path, **values | bank))).collator.joined


def test_style_chat_needs_a_chat_template(gpt2: Path, tmp_path: Path) -> None:
    prompt = METATRAIN["prompt"] | {"style": "chat"}
    with pytest.raises(ConfigError, match=r"prompt\.style: chat needs a tokenizer with a chat template"):
        trained_on(tmp_path, **METATRAIN | {"backbone": {"path": str(gpt2)}, "prompt": prompt})


def test_a_decoder_s_shape_beside_another_source_is_refused(gpt2: Path, tagi: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, **METATRAIN | {"backbone": {"path": str(gpt2), "decoder": SHAPE}})
    mistake(tagi("train", "metatrain", "--config", config), "backbone", "decoder is the shape of random initialisation")
