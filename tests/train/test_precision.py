"""Low precision with fp32 masters, and activations that are computed again: what changes and what must not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from answering import backbone
from builders import small_t5, small_tagi, token_batch, trained
from tagi import Tagi
from tagi.backbones.decoder import model as decoder
from tagi.backbones.rows import Rows
from tagi.backbones.t5 import model as t5
from tagi.config import TrainingConfig
from tagi.config.files import parse
from tagi.model import checkpoint
from tagi.model.tagi import TagiModel
from tagi.train import optim, precision
from tagi.train.build import build_stage
from tagi.train.trainer import train
from training_runs import BOTH, SHAPE, config, furthest, losses, run, tensors

OPTIMIZERS = ("adamw", "adamw_rms", "muon", "adafactor")
BF16 = {"training__precision": "bf16"}


def is_rounded(tensor: Tensor) -> bool:
    """Whether bf16 holds every value exactly."""
    return torch.equal(tensor.bfloat16().float(), tensor)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masters_move_as_fp32_weights_do_that_get_the_same_gradients(optimizer: str) -> None:
    settings = parse(TrainingConfig, {"steps": 9, "optimizer": optimizer, "lr": 1e-3}, source="test")
    torch.manual_seed(0)
    model, reference = nn.Linear(5, 4), nn.Linear(5, 4)
    reference.load_state_dict(model.state_dict())
    names = precision.part_names(model, {"backbone": list(model.parameters())})
    weights = precision.optimize(model, names, precision.lower(model, "bf16"), settings)
    plain = optim.build({"backbone": list(reference.parameters())}, settings)
    for _ in range(5):
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.float()
        weights.pull()
        weights.step()
        plain.step()
    for name, expected in reference.named_parameters():
        assert torch.equal(weights.masters[name], expected)
        assert torch.equal(model.get_parameter(name), expected.bfloat16())
        assert weights.values()[name].equal(expected) and not is_rounded(expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_in_bf16_is_exact_and_files_hold_the_masters(tmp_path: Path, optimizer: str) -> None:
    changes = BF16 | {"training__optimizer": optimizer, "training__schedule": "constant", "training__warmup": 0.0}
    whole = run(config(tmp_path / "whole", **changes))
    run(config(tmp_path / "part", training__steps=4, **changes))
    run(config(tmp_path / "part", **changes), resume=True)  # from step 2 of 4
    assert furthest(whole, tmp_path / "part/final") == 0.0
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    saved = tensors(whole)
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert not any(is_rounded(tensor) for tensor in saved.values() if tensor.numel() > 16)
    Tagi.from_pretrained(whole)


def test_weights_compute_in_bf16_and_learn_what_fp32_learns(tmp_path: Path) -> None:
    """From 5.76 to 4.24 nats in 30 steps; worst difference between the two losses of a step measured 0.019."""
    changes = {"training__steps": 30, "training__lr": 1e-2, "training__checkpoint_every": 30}
    settings = config(tmp_path / "bf16", **BF16, **changes)
    stage = build_stage(settings)
    train(stage, settings.training, tmp_path / "bf16")
    assert {parameter.dtype for parameter in stage.model.parameters()} == {torch.bfloat16}
    run(config(tmp_path / "fp32", **changes))
    exact, rounded = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert rounded != exact
    assert all(abs(a[1] - b[1]) < 0.06 for a, b in zip(exact, rounded, strict=True))
    assert rounded[-1][1] < 0.8 * rounded[0][1]


def frozen(tmp_path: Path, family: str, **changes: Any) -> Any:
    """A run on a frozen backbone that lies elsewhere."""
    start = run(config(tmp_path / "start", family, training__steps=1))
    Tagi.from_pretrained(start).tokenizer.save_pretrained(start / "backbone")
    path, parts = str(start / "backbone"), ["hypernetwork", "fusion"]
    return config(tmp_path / "run", backbone={"path": path}, training__trainable=parts, **changes)


@BOTH
def test_a_frozen_backbone_in_bf16_is_still_the_one_that_the_checkpoint_names(family: str, tmp_path: Path) -> None:
    settings = frozen(tmp_path, family, **BF16)
    before = {name: t.clone() for name, t in build_stage(settings).model.named_buffers()}
    final = run(settings)
    loaded = checkpoint.load(final).model
    assert all(torch.equal(buffer, before[name]) for name, buffer in loaded.named_buffers())


def gradients(model: TagiModel, checkpointing: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch, with the same dropout whatever is kept."""
    ids, mask = token_batch((5, 3), seed=1)
    inputs, input_mask = token_batch((7, 4, 6, 2), seed=2)
    torch.manual_seed(7)
    output = model.train()(ids, mask, inputs, input_mask, inputs[:, :3], Rows(2, 4), checkpointing=checkpointing)
    loss = output.logits.float().pow(2).mean()
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()))
    return loss, dict(zip(wanted, found, strict=True))


def counting(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The blocks that are to be computed again, as they come."""
    calls: list[nn.Module] = []
    plain = torch.utils.checkpoint.checkpoint

    def counted(block: nn.Module, *arguments: Any, **options: Any) -> Any:
        calls.append(block)
        return plain(block, *arguments, **options)

    for family in (t5, decoder):
        monkeypatch.setattr(family, "checkpoint", counted)
    return calls


@pytest.mark.parametrize("method", ["tagi", "lora_only"])
@pytest.mark.parametrize(
    ("family", "dropout", "blocks"),
    [  # two encoder blocks read the instruction, then the input; two decoder blocks
        ("t5", 0.0, 6),
        ("t5", 0.3, 6),
        ("decoder", 0.0, 4),
    ],
)
def test_recomputed_activations_give_the_plain_gradients(
    family: str, dropout: float, blocks: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: the same numbers are computed twice, the dropped ones among them."""
    t5_or_decoder = small_t5(dropout_rate=dropout) if family == "t5" else backbone(family)
    model, calls = trained(small_tagi(method, backbone=t5_or_decoder)), counting(monkeypatch)
    loss, plain = gradients(model, checkpointing=False)
    assert not calls
    again, recomputed = gradients(model, checkpointing=True)
    assert len(calls) == blocks
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize(("method", "family"), [("tagi", "t5"), ("hypter", "t5"), ("tagi", "decoder")])
def test_recomputing_changes_no_training(
    method: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"family": family, "method": method}
    if family == "t5":
        changes["backbone__shape"] = {**SHAPE, "dropout_rate": 0.2}
    plain, calls = run(config(tmp_path / "plain", **changes)), counting(monkeypatch)
    settings = config(tmp_path / "again", training__activation_checkpointing=True, **changes)
    train(build_stage(settings), settings.training, tmp_path / "again")
    assert calls
    assert furthest(plain, tmp_path / "again/final") == 0.0
