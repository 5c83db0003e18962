"""All stages one after another, at toy size: each runs to its end, and goes on after a crash as if there were none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tagi.config import RunConfig
from tagi.model import checkpoint
from tagi.train.build import build_stage
from tagi.train.teachers import plan_teachers, train_teachers
from tagi.train.trainer import train
from training_runs import BOTH, config, furthest, logged, losses, run

GROUPS = ("any", "count", "reverse")
GENERATOR = {"rank": 2, "alpha": 4.0, "hidden": 4}


class Stop(Exception):
    """Stands for a crash in the middle of training."""


def whole_and_broken(settings: RunConfig) -> Path:
    """The checkpoint of a run, which another run reaches too that stops at its sixth batch and is resumed."""
    whole = run(settings)
    broken = settings.model_copy(update={"output": f"{settings.output}-broken"})
    stage = build_stage(broken)

    def batch(index: int) -> Any:
        if index == 5:
            raise Stop
        return stage.batch(index)

    with pytest.raises(Stop):
        train(replace(stage, batches=batch), broken.training, Path(broken.output))
    again = run(broken, resume=True)
    assert furthest(whole, again) == 0.0
    assert logged(Path(settings.output)) == logged(Path(broken.output))
    return whole


@BOTH
@pytest.mark.parametrize("method", ["tagi", pytest.param("lora_only", marks=pytest.mark.slow)])
def test_stages_run_to_their_end_and_resume_exactly(method: str, family: str, tmp_path: Path) -> None:
    backbone: dict[str, Any] = {"training__trainable": ["backbone"]}
    base = whole_and_broken(config(tmp_path / "base", family, stage="metatrain", method="metatrain", **backbone))
    later: dict[str, Any] = {"backbone": None, "hypernetwork": GENERATOR}
    teachers = {"rank": 2, "alpha": 4.0, "only": GROUPS}
    one = {"training__tasks_per_batch": 1, "method": "no_instruction", "start_from": str(base)}
    banked = config(tmp_path / "bank", stage="teachers", teachers=teachers, **later, **one)
    bank = str(train_teachers(plan_teachers(banked)))
    frozen = later | {"bank": bank, "method": method, "training__trainable": ["hypernetwork", "fusion"]}
    first = whole_and_broken(config(tmp_path / "pretrained", stage="pretrain", start_from=str(base), **frozen))
    for kind in ("lora", "instruct"):
        objective = {"lambda_kl": 1.0, "lambda_ins": 0.5, "teacher": {"kind": kind, "checkpoint": str(base)}}
        settings = config(tmp_path / kind, start_from=str(first), objective=objective, **frozen)
        final = whole_and_broken(settings)
        assert all({"ce", "kl", "ins"} <= line.keys() for line in logged(tmp_path / kind))
        assert len(losses(tmp_path / kind)) == 6
        models = [checkpoint.load(folder).model for folder in (base, first, final)]
        weights = [model.backbone.state_dict() for model in models]
        assert all(torch.equal(x, other[name]) for name, x in weights[0].items() for other in weights[1:])
        moved = dict(models[2].named_parameters())
        trained = [name for name, _ in models[1].named_parameters() if not name.startswith("backbone.")]
        assert trained and all(not torch.equal(moved[n], models[1].get_parameter(n)) for n in trained)
