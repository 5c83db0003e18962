"""All stages one after another, at toy size: each runs to its end, and goes on after a crash as if there were none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tagi.config import RunConfig
from tagi.errors import CheckpointError
from tagi.model import checkpoint
from tagi.model.states import StateGenerator
from tagi.train.build import OBSERVED, build_stage
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
        train(replace(stage, batch=batch), broken.training, Path(broken.output))
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


STATES = {"rank": 4, "bias": "learned", "generator": "states", "target_modules": ["q", "v", "o", "up"]}


@pytest.mark.parametrize("method", ["lora_only", "tagi"])
def test_a_generator_of_states_is_trained_and_resumed_exactly(method: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": method, "hypernetwork": STATES}
    final = whole_and_broken(config(tmp_path / "run", "decoder", **changes))
    found, began = checkpoint.load(final).model.hypernetwork, build_stage(config(tmp_path / "x", "decoder", **changes))
    assert isinstance(found, StateGenerator) and isinstance(began.model.hypernetwork, StateGenerator)
    # What was observed before the first step belongs to the model, and what it learned starts from there.
    assert torch.equal(found.mean, began.model.hypernetwork.mean) and found.mean.any()
    assert torch.equal(found.deviation, began.model.hypernetwork.deviation)
    assert not torch.equal(found.query, began.model.hypernetwork.query)


def test_states_are_observed_once_of_the_training_instructions(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "decoder", method="lora_only", hypernetwork=STATES)
    stage = build_stage(settings)
    own = stage.model.hypernetwork
    assert isinstance(own, StateGenerator)
    read = [stage.model.read(one.instruction_ids, one.instruction_mask) for one in map(stage.batch, range(OBSERVED))]
    seen = torch.cat([one.states[one.mask] for one in read if one.states is not None])
    assert (own.mean - seen.mean(0)).abs().max() < 1e-5
    later = settings.model_copy(
        update={
            "start_from": str(run(settings)),
            "backbone": None,
            "data": settings.data.model_copy(update={"seed": 9}),
        }
    )
    again = build_stage(later).model.hypernetwork
    assert isinstance(again, StateGenerator) and torch.equal(again.mean, own.mean)


@pytest.mark.parametrize(("before", "after"), [("shared_lora", "lora_only"), ("tagi", "tagi")])
def test_a_generator_of_states_begins_with_the_shared_lora_of_another(before: str, after: str, tmp_path: Path) -> None:
    shared = {"rank": 2, "hidden": 4, "bias": "learned", "target_modules": STATES["target_modules"]}
    first = run(config(tmp_path / "shared", "decoder", method=before, hypernetwork=shared))
    was = checkpoint.load(first).model.hypernetwork
    assert was is not None
    changes: dict[str, Any] = {"method": after, "start_from": str(first), "backbone": None}
    own = build_stage(config(tmp_path / "x", "decoder", hypernetwork=STATES, **changes)).model.hypernetwork
    assert isinstance(own, StateGenerator)
    for site, factors in was.shared.items():
        product = own.shared[site].scale * (own.shared[site].b @ own.shared[site].a)
        assert torch.allclose(product, factors.scale * (factors.b @ factors.a), atol=1e-7) and factors.b.any()
    fewer = STATES | {"target_modules": ["v"]}
    assert build_stage(config(tmp_path / "x", "decoder", hypernetwork=fewer, **changes)).model.hypernetwork is not None
    narrow = STATES | {"rank": 2}
    with pytest.raises(CheckpointError, match=r"^hypernetwork.rank: 1 rows for all tasks at .*; start_from has 2"):
        build_stage(config(tmp_path / "x", "decoder", hypernetwork=narrow, **changes))
