"""What a folder of a decoder-only model may hold, and what is refused of it in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GPT2, ONE_EACH, OPT, ROTARY, VARIANTS, Variant, pair
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tagi.backbones.decoder.configs import read_decoder_shape
from tagi.backbones.decoder.weights import load_decoder
from tagi.config import DecoderShape, Learned, Rotary
from tagi.errors import CheckpointError

BARE: dict[str, Any] = {
    "vocab_size": 48,
    "d_model": 32,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_positions": 64,
    "rotary": Rotary(),
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"learned": Learned()}, "either rotary or learned"),
        ({"rotary": None}, "either rotary or learned"),
        ({"window_layers": (1,)}, "window_layers need a window"),
        ({"window": 4, "window_layers": (2,)}, "window_layers are layers from 0 to 1"),
        ({"eos_token_ids": (1, 48)}, "token 48 is outside the vocabulary of 48"),
        ({"pad_token_id": -1}, "token -1 is outside the vocabulary of 48"),
        ({"num_heads": 0}, "greater than 0"),
    ],
)
def test_decoder_parity_needs_a_shape_that_fits(change: dict[str, Any], sentence: str) -> None:
    DecoderShape.model_validate(BARE)
    with pytest.raises(ValidationError, match=sentence):
        DecoderShape.model_validate(BARE | change)


def folder_of(variant: Variant, target: Path, **change: Any) -> Path:
    """A member's folder with some fields of its config.json changed."""
    config = json.loads((pair(variant).folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(pair(variant).folder / "model.safetensors")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("family", "config", "change", "sentence"),
    [
        ("llama", ROTARY, {"model_type": "bloom"}, "model_type: 'bloom' is none of llama, mistral"),
        ("llama", ROTARY, {"num_key_value_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ("gpt2", GPT2, {"n_head": 5}, "num_attention_heads: 5 heads do not divide a width of 32"),
        ("opt", OPT, {"num_attention_heads": 3}, "num_attention_heads: 3 heads do not divide a width of 32"),
        ("llama", ROTARY, {"hidden_act": "mish"}, "hidden_act: 'mish' is none of silu"),
        ("gpt2", GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_weights"),
        ("gpt2", GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        ("opt", OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("opt", OPT, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("llama", ROTARY, {"eos_token_id": 48}, "token 48 is outside the vocabulary of 48"),
        (
            "llama",
            ROTARY,
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic' is none of default, linear, llama3",
        ),
    ],
)
def test_decoder_parity_needs_a_config_that_is_known(
    family: str, config: dict[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = folder_of(
        next(one for one in VARIANTS if one.config is config and one.family == family), tmp_path, **change
    )
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{sentence}"):
        load_decoder(folder)


@pytest.mark.parametrize("variant", ONE_EACH, ids=lambda variant: variant.name)
def test_decoder_parity_needs_every_tensor_in_its_shape(variant: Variant, tmp_path: Path) -> None:
    folder = folder_of(variant, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if "layers.1" in name or ".h.1." in name if tensor.dim() > 1)
    save_file({one: tensor for one, tensor in tensors.items() if one != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        load_decoder(folder)
    save_file(tensors | {name: tensors[name][:-1].clone()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} has shape"):
        load_decoder(folder)


def test_decoder_parity_needs_whole_safetensors(tmp_path: Path) -> None:
    folder = folder_of(VARIANTS[0], tmp_path)
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:200])
    with pytest.raises(CheckpointError, match="is damaged or half-written"):
        load_decoder(folder)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_decoder(folder)


@pytest.mark.parametrize("variant", ONE_EACH, ids=lambda variant: variant.name)
def test_parity_of_files_of_the_model_without_its_head(variant: Variant, tmp_path: Path) -> None:
    """Such as the first GPT-2's on the hub, whose names lack the first part."""
    folder = folder_of(variant, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    bare = {name if name == "lm_head.weight" else name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    expected = pair(variant).ours.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_decoder(folder).state_dict().items())


def test_parity_of_several_end_tokens(tmp_path: Path) -> None:
    folder = folder_of(VARIANTS[0], tmp_path, eos_token_id=[1, 7])
    assert read_decoder_shape(folder).eos_token_ids == (1, 7)
