"""Encoded instructions kept across steps: nothing but the time may depend on what is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from answering import FAMILIES, backbone
from builders import SMALL_HYPERNETWORK, small_t5, small_tagi, token_batch, worst
from tagi import Tagi
from tagi.config import RunConfig, TrainingConfig
from tagi.config.files import parse
from tagi.data.collate import Batch
from tagi.train.build import build_stage
from tagi.train.encodings import Encodings, encodings
from training_runs import BACKBONES, BOTH, SHAPE, config, furthest, losses, run

FROZEN = ("hypernetwork", "fusion")


def batch(lengths: tuple[int, ...], seed: int = 1) -> Batch:
    """A batch of which only the instructions matter."""
    ids, mask = token_batch(lengths, seed=seed)
    return Batch(ids, mask, ids, mask, ids, torch.arange(len(lengths)))


def of(tmp_path: Path, name: str, family: str, **changes: Any) -> RunConfig:
    """A run on a frozen backbone, with dropout where the family has it, two phrasings of few tasks."""
    start = tmp_path / "start"
    if not start.exists():
        shape = {"shape": {**SHAPE, "dropout_rate": 0.2}, "tokenizer": "micro"}
        run(config(start, training__steps=1, backbone=shape if family == "t5" else BACKBONES[family]))
        Tagi.from_pretrained(start / "final").tokenizer.save_pretrained(start / "final" / "backbone")
    path = str(start / "final" / "backbone")
    parts = list(FROZEN if family == "t5" else FROZEN[:1])
    return config(tmp_path / name, backbone={"path": path}, training__trainable=parts, **changes)


def test_encodings_are_the_encoder_s_without_dropout_and_zero_where_padded() -> None:
    """Against the encoder on the padded batch; worst difference measured 8.9e-7 on values up to 4."""
    model = small_tagi(backbone=small_t5(dropout_rate=0.5))
    one = batch((5, 2, 7))
    expected = model.read(one.instruction_ids, one.instruction_mask).hidden
    model.train()
    encoded = Encodings(model, 10**6)(one)
    assert encoded is not None and not encoded.hidden.requires_grad and encoded.attended is None
    real = one.instruction_mask.bool()
    assert worst(encoded.hidden[real], expected[real]) < 3e-6
    assert torch.equal(encoded.mask, real) and not encoded.hidden[~real].any()
    assert model.backbone.training


def test_what_a_decoder_attends_to_is_kept_too() -> None:
    """Against one pass over the padded batch; worst difference measured 2e-6 on values up to 5."""
    model = small_tagi(backbone=backbone("decoder"))
    one = batch((5, 2, 7))
    expected, found = model.read(one.instruction_ids, one.instruction_mask), Encodings(model, 10**6)(one)
    assert found is not None and found.attended is not None and expected.attended is not None
    assert not any(tensor.requires_grad for tensor in found.tensors)
    real = one.instruction_mask.bool()
    assert worst(found.hidden[real], expected.hidden[real]) < 3e-6
    assert torch.equal(found.attended.mask, real) and torch.equal(found.attended.start, real.sum(1))
    assert torch.equal(found.attended.positions[real], expected.attended.positions[real])
    for ours, theirs in zip(found.attended.layers, expected.attended.layers, strict=True):
        for x, y in ((ours.k, theirs.k), (ours.v, theirs.v)):
            assert worst(x.movedim(2, 1)[real], y.movedim(2, 1)[real]) < 3e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoding_depends_neither_on_its_neighbours_nor_on_what_is_kept(family: str) -> None:
    model = small_tagi(backbone=backbone(family))
    together = Encodings(model, 10**6)(batch((5, 2, 7)))
    kept, nothing = Encodings(model, 10**6), Encodings(model, 0)
    kept(batch((3, 3), seed=9))
    again = replace(batch((5, 2, 7)))
    assert together is not None
    for encode in (kept, kept, nothing):
        found = encode(again)
        assert found is not None
        assert all(torch.equal(x, y) for x, y in zip(found.tensors, together.tensors, strict=True))
    assert not nothing.kept and nothing.bytes == 0
    ids, mask = again.instruction_ids[1:2, :2], again.instruction_mask[1:2, :2]
    alone = nothing(replace(again, instruction_ids=ids, instruction_mask=mask))
    of_it = together.select(torch.tensor([1])).cut(2)
    assert alone is not None and all(torch.equal(x, y) for x, y in zip(alone.tensors, of_it.tensors, strict=True))


@pytest.mark.parametrize(
    ("family", "size"),
    [  # four tokens: width 32, fp32, and the mask; of a decoder two layers of keys and values, two heads of width 6
        ("t5", 4 * 32 * 4 + 4),
        ("decoder", 4 * 32 * 4 + 4 + 2 * 2 * 4 * 2 * 6 * 4),
    ],
)
def test_memory_is_bounded_and_the_oldest_goes_first(family: str, size: int) -> None:
    model = small_tagi(backbone=backbone(family))
    encode = Encodings(model, 2 * size)
    first, second, third = (batch((4,), seed=seed) for seed in (1, 2, 3))
    for one in (first, second, first, third):
        encode(one)
    assert encode.bytes == 2 * size
    assert set(encode.kept) == {tuple(one.instruction_ids[0].tolist()) for one in (first, third)}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_instruction_has_an_encoding_of_length_zero(family: str) -> None:
    found = Encodings(small_tagi(backbone=backbone(family)), 10**6)(batch((0, 3)))
    assert found is not None and found.hidden.shape == (2, 3, 32) and not found.hidden[0].any()
    assert found.mask.tolist() == [[False] * 3, [True] * 3]
    assert (found.attended is None) == (family == "t5")
    if found.attended is not None:
        assert found.attended.start.tolist() == [0, 3] and torch.equal(found.attended.mask, found.mask)


@pytest.mark.parametrize(
    ("method", "encoder", "trainable", "constant"),
    [
        ("tagi", "lm", FROZEN, True),
        ("lora_only", "lm", FROZEN, True),
        ("tagi", "lm", ("backbone", *FROZEN), False),
        ("tagi", "separate", FROZEN, False),
        ("metatrain", "lm", ("backbone",), False),
    ],
)
def test_only_constants_are_kept(method: str, encoder: str, trainable: tuple[str, ...], constant: bool) -> None:
    model = small_tagi(method, hypernetwork=SMALL_HYPERNETWORK.model_copy(update={"instruction_encoder": encoder}))
    settings = parse(TrainingConfig, {"steps": 1, "trainable": trainable}, source="test")
    assert (encodings(model, settings) is not None) == constant


@BOTH
def test_training_is_the_same_with_and_without_keeping_and_on_resume(family: str, tmp_path: Path) -> None:
    with_all = run(of(tmp_path, "kept", family))
    without = run(of(tmp_path, "nothing", family, training__instruction_cache_mb=0))
    assert furthest(with_all, without) == 0.0
    assert losses(tmp_path / "kept") == losses(tmp_path / "nothing")
    constant = {"training__schedule": "constant", "training__warmup": 0.0}
    whole = run(of(tmp_path, "whole", family, **constant))
    run(of(tmp_path, "part", family, training__steps=4, **constant))
    resumed = run(of(tmp_path, "part", family, **constant), resume=True)
    assert furthest(whole, resumed) == 0.0


@BOTH
def test_a_stage_uses_what_is_kept(family: str, tmp_path: Path) -> None:
    stage = build_stage(of(tmp_path, "run", family))
    assert isinstance(stage.encode, Encodings)
    first = stage.batch(0)
    with_kept = stage.loss(stage.model.eval(), first)["ce"].total
    assert len(stage.encode.kept) == len(set(map(tuple, first.instruction_ids.tolist())))
    plain = replace(stage, encode=None).loss(stage.model, first)["ce"].total
    assert worst(with_kept, plain) < 1e-4  # padded in one batch or alone: measured 0 on a sum of 216
