"""Checkpoints: what is written, what is only referred to, and every way in which a folder can be wrong."""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, T5ForConditionalGeneration

from builders import model_config, small_t5, small_tagi, token_batch, trained
from tagi import methods
from tagi.errors import CheckpointError
from tagi.files import DiskError
from tagi.methods import Method
from tagi.model import checkpoint
from tagi.model.checkpoint import BACKBONE, ModelConfig, fingerprint
from tagi.model.t5_hf import load_t5, save_t5
from tagi.model.tagi import TagiModel

Damage = Callable[[Path], None]


def assert_same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A whole checkpoint with its backbone inside."""
    model = trained(small_tagi())
    checkpoint.save(model, model_config(model), tmp_path / "ckpt")
    return tmp_path / "ckpt"


@pytest.fixture
def frozen(tmp_path: Path) -> tuple[TagiModel, ModelConfig, Path]:
    """A model on a frozen backbone that lies in a folder of its own, and where its checkpoint is."""
    save_t5(small_t5(seed=5), tmp_path / "llm")
    model = trained(small_tagi(backbone=load_t5(tmp_path / "llm")))
    config = model_config(model, backbone=str(tmp_path / "llm"))
    checkpoint.save(model, config, tmp_path / "ckpt")
    return model, config, tmp_path / "ckpt"


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.name)
def test_round_trip_is_exact(method: Method, tmp_path: Path) -> None:
    model = trained(small_tagi(method.name))
    config = model_config(model)
    checkpoint.save(model, config, tmp_path / "ckpt")
    loaded = checkpoint.load(tmp_path / "ckpt")
    assert loaded.config == config
    assert loaded.folder == tmp_path / "ckpt"
    assert loaded.model.method is method
    assert not loaded.model.training
    assert_same_tensors(loaded.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("encoder", ["lm", "separate"])
def test_round_trip_keeps_a_separate_instruction_encoder(encoder: str, tmp_path: Path) -> None:
    settings = model_config(small_tagi()).hypernetwork.model_copy(update={"instruction_encoder": encoder})
    model = trained(small_tagi(hypernetwork=settings))
    with torch.no_grad():
        for parameter in model.part("hypernetwork")[-1].parameters():
            parameter.add_(0.25)
    config = model_config(model).model_copy(update={"hypernetwork": settings})
    checkpoint.save(model, config, tmp_path / "ckpt")
    assert_same_tensors(checkpoint.load(tmp_path / "ckpt").model.state_dict(), model.state_dict())


def test_loaded_model_answers_to_the_last_bit(saved: Path) -> None:
    first, second = trained(small_tagi()), checkpoint.load(saved).model
    instruction, inputs = token_batch([5, 2], seed=0), token_batch([4, 7], seed=1)
    from tagi.model.rows import Rows

    one, other = (model(*instruction, *inputs, inputs[0], Rows(2, 2)).logits for model in (first, second))
    assert torch.equal(one, other)
