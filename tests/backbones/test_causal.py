"""GPT-2 and OPT behind the protocol, against `transformers` itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tagi.backbones.causal import CausalLM
from tagi.infer.decode import score_answers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from builders import (
    SMALL_FUSION,
    SMALL_HYPERNETWORK,
    VOCABULARY,
    greedy,
    model_config,
    small_causal,
    small_tagi,
    token_batch,
)
from cli_runs import CONFIG, INSTRUCTION, Run, mistake, write_config
from tagi import Tagi, methods
from tagi.backbones.language_model import load_language_model, save_language_model
from tagi.backbones.rows import Rows
from tagi.config import TrainingConfig
from tagi.data.types import Instruction
from tagi.errors import CheckpointError, ConfigError, InputError
from tagi.eval.report import read_predictions
from tagi.eval.rouge import exact_match
from tagi.model import checkpoint, costs, flops
from tagi.model.costs import TaskLengths
from tagi.model.flops import Lengths
from tagi.model.tagi import TagiModel, neutral, shift_right
from tagi.train import memory

FAMILIES: list[dict[str, Any]] = [
    {"architecture": "gpt2"},
    {"architecture": "opt"},
    {"architecture": "opt", "d_embedding": 16},
]
PROMPTS, ANSWERS = (7, 3, 5), (4, 6, 1)


def wrapped(**family: Any) -> tuple[TagiModel, CausalLM]:
    backbone = small_causal(seed=3, **family)
    return small_tagi("decoder_only", backbone=backbone), backbone


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their mask, and labels."""
    ids, mask = token_batch(PROMPTS, seed=1)
    labels, valid = token_batch(ANSWERS, seed=2)
    return ids, mask, labels.masked_fill(valid == 0, -100)


def logits_of(model: TagiModel, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    none = torch.zeros(len(ids), 0, dtype=torch.long)
    shape = model.backbone.shape
    decoder_ids = shift_right(labels, shape.decoder_start_token_id, shape.pad_token_id)
    return model(none, none, ids, mask, decoder_ids, Rows(len(ids), len(ids))).logits


def whole(ids: Tensor, labels: Tensor, row: int, start: int) -> tuple[Tensor, int]:
    """One row as one unpadded text: prompt, start token, all of the answer but its end; and where answers begin."""
    prompt, answer = ids[row, : PROMPTS[row]], labels[row, : ANSWERS[row] - 1]
    return torch.cat([prompt, torch.tensor([start]), answer])[None], PROMPTS[row]


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_are_transformers_own_logits_and_gradients(family: dict[str, Any]) -> None:
    """Measured: logits equal to the bit, gradients within 9.5e-7."""
    model, backbone = wrapped(**family)
    ids, mask, labels = texts()
    ours = logits_of(model, ids, mask, labels)
    valid = (labels != -100)[..., None]
    (ours * valid).square().sum().backward()
    found = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    total = torch.zeros(())
    for row in range(3):
        text, begin = whole(ids, labels, row, backbone.shape.decoder_start_token_id)
        theirs = backbone.model(input_ids=text).logits[0, begin:]
        torch.testing.assert_close(
            ours[row, : ANSWERS[row]], theirs, atol=1e-6, rtol=1e-6
        )  # measured 0 on values up to 0.4
        total = total + theirs.square().sum()
    total.backward()
    assert found and all(p.grad is not None for name, p in backbone.named_parameters() if name in found)
    for name, parameter in backbone.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=5e-6, rtol=0)  # 9.5e-7 at most, of up to 12


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_generate(family: dict[str, Any]) -> None:
    model, backbone = wrapped(**family)
    ids, mask, _ = texts()
    shape = backbone.shape
    prepared = model.prepare(neutral(backbone, 1))
    ours = greedy(model, ids, mask, prepared, Rows(1, 3), 9)
    for row in range(3):
        text = torch.cat([ids[row, : PROMPTS[row]], torch.tensor([shape.decoder_start_token_id])])[None]
        generate = cast(Callable[..., Tensor], backbone.model.generate)
        theirs = generate(text, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(text))
        answer = theirs[0, text.shape[1] :]
        assert ours[row, : len(answer)].tolist() == answer.tolist()


def test_one_pass_over_the_prompt_scores_all_of_its_choices() -> None:
    model, backbone = wrapped(architecture="gpt2")
    ids, mask, _ = texts()
    choices, valid = token_batch((2, 5, 3, 1), seed=5)
    owner = torch.tensor([0, 0, 1, 2])
    labels = choices.masked_fill(valid == 0, -100)
    prepared = model.prepare(neutral(backbone, 1))
    found = score_answers(model, ids, mask, labels, owner, prepared=prepared, rows=Rows(1, 3))
    for number, row in enumerate(owner.tolist()):
        answer = choices[number, : int(valid[number].sum())]
        prompt = torch.cat([ids[row, : PROMPTS[row]], torch.tensor([backbone.shape.decoder_start_token_id])])
        logits = backbone.model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(-1, answer[:, None]).sum()
        torch.testing.assert_close(found.total[number], alone, atol=0, rtol=1e-6)  # measured 0 on values up to 20
        assert found.tokens[number] == len(answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_transformers_own_and_comes_back(family: dict[str, Any], tmp_path: Path) -> None:
    backbone = small_causal(seed=4, **family)
    save_language_model(backbone, tmp_path / "lm")
    again = load_language_model(tmp_path / "lm")
    assert isinstance(again, CausalLM)
    assert again.shape == backbone.shape.model_copy(update={"d_embedding": again.shape.d_embedding})
    text = torch.tensor([[4, 9, 7]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")(input_ids=text).logits
    assert torch.equal(theirs, backbone.model(input_ids=text).logits)
    assert torch.equal(again.model(input_ids=text).logits, theirs)


def test_a_checkpoint_holds_the_whole_model(tmp_path: Path) -> None:
    model, _ = wrapped(architecture="opt")
    checkpoint.save(model, model_config(model), tmp_path / "tagi")
    again = checkpoint.load(tmp_path / "tagi").model
    assert torch.equal(logits_of(model, *texts()), logits_of(again, *texts()))


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_and_a_task_cost_what_torch_counts(family: dict[str, Any]) -> None:
    backbone = small_causal(seed=0, **family)
    backbone.model.set_attn_implementation("eager")  # the counter sees no fused kernel
    model, task = small_tagi("decoder_only", backbone=backbone), TaskLengths(9, 4, 2, 7, 5, examples=6)
    method, length = methods.get("decoder_only"), 9 + 2 * 4 + 7
    prompts = torch.randint(2, VOCABULARY, (6, length))
    rows = Rows(1, 6)
    with FlopCounterMode(display=False) as counted:
        context = model.encode_input(prompts, torch.ones_like(prompts), model.prepare(neutral(backbone, 1)), rows)
        past, token = None, prompts[:, :1]
        for _ in range(5):
            _, past = backbone.decode(token, context, modules={}, rows=rows, past=past)
    found = costs.task_flops(backbone.shape, method, SMALL_HYPERNETWORK, SMALL_FUSION, task)
    assert (found.adaptation, found.answering) == (0.0, counted.get_total_flops())
    with FlopCounterMode(display=False) as counted:
        logits_of(model, prompts, torch.ones_like(prompts), prompts[:, :5])
    lengths = Lengths(6, 6, 0, length, 5)
    passes = flops.forward(backbone.shape, method, SMALL_HYPERNETWORK, SMALL_FUSION, lengths)
    assert passes.total == counted.get_total_flops()


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("lengths", [Lengths(4, 4, 0, 40, 8), Lengths(4, 4, 0, 12, 30)])
def test_activations_are_about_what_autograd_keeps(architecture: str, lengths: Lengths) -> None:
    """Without dropout; measured worst case 9 %."""
    backbone = small_causal(architecture=architecture, d_model=64, d_ff=256, num_layers=4, vocab_size=200).train()
    model = small_tagi("decoder_only", backbone=backbone)
    seen: dict[int, Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(2, 200, (lengths.rows, lengths.input))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits_of(model, ids, torch.ones_like(ids), torch.randint(2, 200, (lengths.rows, lengths.target)))
    kept = sum(tensor.untyped_storage().nbytes() for pointer, tensor in seen.items() if pointer not in own)
    estimate = memory.causal_activations(backbone.shape, TrainingConfig(steps=1), lengths)
    logits = lengths.rows * lengths.target * 200 * 4 * (1 + memory.LOSS_COPIES)
    assert 0.9 < (estimate - logits) / kept < 1.1


def test_more_tokens_than_positions_are_refused() -> None:
    model, backbone = wrapped(architecture="gpt2")
    ids = torch.full((1, 62), 5)
    prepared = model.prepare(neutral(backbone, 1))
    with pytest.raises(InputError, match="65 tokens together, more than the 64 positions"):
        model.respond(prepared.adapter, ids, torch.ones_like(ids), ids[:, :3], Rows(1, 1))
    answer = greedy(model, ids, torch.ones_like(ids), prepared, Rows(1, 1), 9)
    assert answer.shape[1] <= 2, "an answer ends with the last position"


def test_methods_and_language_models_must_fit() -> None:
    with pytest.raises(ConfigError, match="tagi needs an encoder-decoder; gpt2"):
        small_tagi("tagi", backbone=small_causal())
    with pytest.raises(ConfigError, match="decoder_only needs GPT-2 or OPT"):
        TagiModel(small_tagi().backbone, methods.get("decoder_only"), SMALL_HYPERNETWORK, SMALL_FUSION)


def byte_level(texts: Sequence[str]) -> PreTrainedTokenizerFast:
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
    tokenizer = byte_level([])
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


DECODER_ONLY = {
    "stage": "metatrain",
    "method": "decoder_only",
    "prompt": {"style": "plain", "max_instruction": 128, "max_input": 64, "max_target": 32},
    "training": CONFIG["training"] | {"trainable": ["backbone"]},
}


def test_a_published_checkpoint_is_trained_scored_and_asked(gpt2: Path, tagi: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, **DECODER_ONLY | {"backbone": {"path": str(gpt2)}})
    final = tagi("train", "metatrain", "--config", config).out.strip()
    trained, before = load_language_model(Path(final) / "backbone"), load_language_model(gpt2)
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
    again = tagi("train", "metatrain", "--config", write_config(tmp_path, **DECODER_ONLY | {
        "backbone": None, "start_from": final, "output": str(tmp_path / "second")}), "--json")  # fmt: skip
    assert again.code == 0 and again.json["parameters"]["backbone"] > 0


def test_a_random_one_is_planned_before_it_is_trained(tagi: Run, tmp_path: Path) -> None:
    shape = {"architecture": "opt", "vocab_size": 8, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    changes = DECODER_ONLY | {"backbone": {"tokenizer": "micro", "causal": shape}}
    planned = tagi("train", "metatrain", "--config", write_config(tmp_path, **changes), "--dry-run", "--json")
    assert planned.code == 0 and planned.json["flops_per_step"] > 0 and planned.json["memory"]["activations"] > 0
    done = tagi("train", "metatrain", "--config", write_config(tmp_path, **changes), "--json")
    assert done.code == 0 and done.json["parameters"] == planned.json["parameters"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "metatrain"}, ["method: metatrain needs an encoder-decoder", "gpt2"]),
        ({"prompt": {"max_instruction": 200}}, ["prompt: max_instruction + max_input + max_target", "256 positions"]),
        (
            {"training": DECODER_ONLY["training"] | {"gradient_checkpointing": True}},
            ["training.gradient_checkpointing"],
        ),
        ({"stage": "teachers"}, ["stage teachers needs no_instruction"]),
    ],
)
def test_what_a_decoder_only_run_cannot_be(
    changes: dict[str, Any], words: list[str], gpt2: Path, tagi: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path, **DECODER_ONLY | {"backbone": {"path": str(gpt2)}} | changes)
    mistake(tagi("train", changes.get("stage", "metatrain"), "--config", config), *words)


def test_a_causal_shape_beside_another_source_is_refused(gpt2: Path, tagi: Run, tmp_path: Path) -> None:
    shape = {"architecture": "opt", "vocab_size": 8}
    config = write_config(tmp_path, **DECODER_ONLY | {"backbone": {"path": str(gpt2), "causal": shape}})
    mistake(tagi("train", "metatrain", "--config", config), "backbone", "causal is the shape of random initialisation")


def test_damaged_folders_are_refused(gpt2: Path) -> None:
    weights = gpt2 / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_language_model(gpt2)
    weights.unlink()
    torch.save({}, gpt2 / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="read from safetensors only"):
        load_language_model(gpt2)
    weights.write_bytes(kept)
    wider = (gpt2 / "config.json").read_text().replace('"n_layer": 1', '"n_layer": 2')
    (gpt2 / "config.json").write_text(wider)
    with pytest.raises(CheckpointError, match=r"tensor transformer\.h\.1"):
        load_language_model(gpt2)
