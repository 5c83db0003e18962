"""Where training runs on an accelerator nothing of a step, of a gathered bank or of validation stays on the CPU.

`elsewhere.second_device` stands for the accelerator, so what is tried here computes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from test_teachers import GROUPS, settings, student

from builders import worst
from elsewhere import DEVICE, Elsewhere, second_device
from tagi.cli import train as train_command
from tagi.data.sources import Sources
from tagi.train.build import build_stage
from tagi.train.teachers import bank_stage, lane_losses, plan_teachers, train_teachers
from training_runs import config, run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config(tmp_path_factory.mktemp("base") / "run", training__steps=1))


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teachers(plan_teachers(settings(base, tmp_path_factory.mktemp("bank"))))


def test_device_tensors_do_not_meet_those_of_the_cpu() -> None:
    """The second device is strict: else nothing below would prove anything."""
    with second_device() as device:
        there = torch.ones(2).to(device)
        assert isinstance(there, Elsewhere) and (there * 2).device == device
        assert float((there * torch.tensor(2.0)).sum()) == 4.0
        assert type(there.cpu()) is torch.Tensor
        for meet in (lambda: there + torch.ones(2), lambda: torch.ones(2, 2) @ there, lambda: there[torch.tensor([0])]):
            with pytest.raises(AssertionError, match="lies on the CPU"):
                meet()


@pytest.mark.parametrize(("bits", "bound"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_device_of_a_gathered_bank(bits: str, bound: float, base: Path, tmp_path: Path) -> None:
    """Each teacher's loss is taken where and as it was trained; worst difference measured 4.8e-7, and 2.2e-3 in bf16,
    for another device has another attention kernel."""
    chosen = settings(base, tmp_path / "bank")
    expected = lane_losses(bank_stage(plan_teachers(chosen), GROUPS), bits, torch.device("cpu"))
    stage = bank_stage(plan_teachers(chosen), GROUPS)
    with second_device() as device:
        found = lane_losses(stage, bits, device)
        assert found.device == device
        assert worst(found.cpu(), expected) < bound


@pytest.mark.parametrize("kind", ["lora", "instruct"])
def test_device_of_every_term(kind: str, base: Path, bank: Path, tmp_path: Path, metatrained_base: Path) -> None:
    """Labels, teacher and alignment; what each is divided by lies there too, for processes to add it up."""
    teacher = {"kind": kind, "checkpoint": str(base if kind == "lora" else metatrained_base)}
    objective: dict[str, Any] = {"lambda_ins": 0.5, "lambda_kl": 1.0, "teacher": teacher}
    stage = build_stage(student(base, bank, tmp_path / "run", method="lora_only", objective=objective))
    batch = stage.batch(0)
    expected = stage.loss(stage.model, batch)
    with second_device() as device, torch.no_grad():
        stage.model.to(device)
        moved = batch.to(device)
        found, counts = stage.loss(stage.model, moved), stage.counts(moved)
        for name, term in expected.items():
            assert {found[name].total.device, found[name].count.device, counts[name].device} == {device}
            # worst relative difference measured: 1.2e-7
            assert worst(found[name].total.cpu(), term.total) < 1e-6 * float(term.total.detach().abs())


@pytest.fixture(scope="module")
def metatrained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruct teacher."""
    folder = tmp_path_factory.mktemp("instruct")
    return run(config(folder, stage="metatrain", method="metatrain", training__trainable=["backbone"]))


def test_device_of_validation_is_that_of_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = train_command._validator(config(base.parent, data__valid_instances=2), Sources())
    assert validate is not None
    expected = validate(base)
    with second_device():
        monkeypatch.setattr(PartialState(), "device", DEVICE)
        opened = train_command._where_training_runs(base)
        assert {parameter.device for parameter in opened.model.parameters()} == {DEVICE}
        assert validate(base) == expected
