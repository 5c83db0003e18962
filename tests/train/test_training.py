"""Training: exact resume, a frozen backbone that stays, refusals, and optimizers against their formulas."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import small_tagi
from sni_folders import write_sni
from tagi import Tagi, methods
from tagi.backbones.t5.model import T5, T5Shape
from tagi.config import FusionConfig, HypernetworkConfig, TrainingConfig
from tagi.config.files import parse
from tagi.data.synthetic.micro_splits import splits
from tagi.errors import CheckpointError, ConfigError
from tagi.losses import Loss
from tagi.model import checkpoint
from tagi.model.tagi import TagiModel
from tagi.train import checkpoints, optim
from tagi.train.build import build_stage
from tagi.train.stage import ModelStage, Term
from tagi.train.trainer import TrainingError, train
from training_runs import BOTH, SHAPE, config, losses, run, tensors


class Stop(Exception):
    """Stands for a crash in the middle of training."""


def crash_at(stage: ModelStage, index: int) -> ModelStage:
    def batch(i: int) -> Any:
        if i == index:
            raise Stop
        return stage.batch(i)

    return replace(stage, batch=batch)


@BOTH
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_rms", "muon", "adafactor"])
def test_resume_is_exact_to_the_bit(tmp_path: Path, optimizer: str, family: str) -> None:
    whole = config(tmp_path / "whole", family, training__optimizer=optimizer)
    broken = config(tmp_path / "broken", family, training__optimizer=optimizer)
    run(whole)
    with pytest.raises(Stop):
        train(crash_at(build_stage(broken), 5), broken.training, tmp_path / "broken")
    assert not (tmp_path / "broken" / "final").exists()
    run(broken, resume=True)  # goes on at step 4, the last checkpoint
    one, other = tensors(tmp_path / "whole/final"), tensors(tmp_path / "broken/final")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_dropout_is_repeated_on_resume(tmp_path: Path) -> None:
    whole = config(tmp_path / "whole", backbone__shape={**SHAPE, "dropout_rate": 0.3})
    broken = whole.model_copy(update={"output": str(tmp_path / "broken")})
    run(whole)
    with pytest.raises(Stop):
        train(crash_at(build_stage(broken), 3), broken.training, tmp_path / "broken")
    run(broken, resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@BOTH
def test_a_frozen_backbone_does_not_move(tmp_path: Path, family: str) -> None:
    start = run(config(tmp_path / "start", family, training__steps=1))
    settings = config(
        tmp_path / "run", backbone={"path": str(start / "backbone")}, training__trainable=["hypernetwork", "fusion"]
    )
    # the tokenizer stands beside the checkpoint, not beside its backbone
    Tagi.from_pretrained(start).tokenizer.save_pretrained(start / "backbone")
    stage = build_stage(settings)
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    train(stage, settings.training, Path(settings.output))
    after = stage.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith("backbone.")]
    trained = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    assert moved == trained  # every trainable tensor moved, and nothing else, A₀ included
    final = checkpoint.read_config(Path(settings.output) / "final")
    assert final.backbone == str(start / "backbone")
    assert not (Path(settings.output) / "final" / "backbone").exists()


def test_all_parts_train_from_random_initialisation(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", training__steps=30, training__lr=1e-2)
    run(settings)
    logged = losses(tmp_path / "run")
    assert logged[-1][1] < 0.85 * logged[0][1]  # measured 0.735: 5.76 to 4.24 nats


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    settings = config(tmp_path / "run")
    stage = build_stage(settings)
    calls = iter(range(100))

    def poisoned(output: Any, batch: Any) -> Loss:
        value = math.nan if next(calls) == 3 else 1.0
        return Loss(output.logits.sum() * 0 + value, torch.tensor(1))

    poisonous = replace(stage, terms=(Term("ce", 1.0, poisoned, lambda batch: torch.tensor(1)),))
    names = ", ".join(dict.fromkeys(stage.batch(3).names))
    with pytest.raises(TrainingError, match=re.escape(f"step 4: the loss is not finite in batch 3 (tasks {names});")):
        train(poisonous, settings.training, tmp_path / "run")
    kept = checkpoints.checkpoints(tmp_path / "run")
    assert [folder.name for folder in kept] == ["step-00000002"]
    assert all(t.isfinite().all() for t in tensors(kept[0]).values())


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", training__steps=1)
    run(settings)
    with pytest.raises(CheckpointError, match="--resume"):
        run(settings)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    run(config(tmp_path / "run", training__checkpoint_every=1, training__keep=2))
    assert [folder.name for folder in checkpoints.checkpoints(tmp_path / "run")] == ["step-00000004", "step-00000005"]


def test_evaluation_is_called_at_checkpoints_and_logged(tmp_path: Path) -> None:
    scores = iter((0.2, 0.4, 0.6))
    run(config(tmp_path / "run"), evaluate=lambda folder: {"valid": next(scores)})
    logged = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert {line["step"]: line["valid"] for line in logged if "valid" in line} == {2: 0.2, 4: 0.4, 6: 0.6}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage": "metatrain"}, "stage: metatrain puts the instruction in the prompt"),
        ({"method": "metatrain"}, "stage: finetune trains the parts that read an instruction"),
        ({"data__source": "c4", "data__path": "x"}, "data.source: c4 does not suit stage finetune"),
        ({"method": "lora_only", "training__trainable": ["fusion"]}, "training.trainable"),
        ({"method": "tagy"}, "did you mean tagi"),
        ({"training__bucket": "prompt"}, "training.bucket: tagi reads no prompt"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_stage(config(tmp_path, **changes))


def test_both_systems_start_from_the_same_tensors_and_see_the_same_rows(tmp_path: Path) -> None:
    tagi = build_stage(config(tmp_path))
    baseline = build_stage(config(tmp_path, stage="metatrain", method="metatrain"))
    ours, theirs = tagi.model.backbone.state_dict(), baseline.model.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for index in (0, 17):
        one, other = tagi.batch(index), baseline.batch(index)
        assert torch.equal(one.labels, other.labels)
        assert other.input_ids.shape[1] > one.input_ids.shape[1]


def test_training_runs_on_sni_files(tmp_path: Path) -> None:
    split = splits(0, train_compositions=20, valid=2, test=2)
    write_sni(tmp_path / "sni", [t.task() for t in split.compositions], [t.task() for t in split.test], instances=6)
    settings = config(
        tmp_path / "run",
        data={"source": "sni", "path": str(tmp_path / "sni"), "valid_tasks": 3},
        prompt={"style": "tk"},
    )
    tagi = Tagi.from_pretrained(run(settings))
    assert tagi.config.prompt.style == "tk"


def test_pretraining_cuts_plain_text_in_three(tmp_path: Path) -> None:
    words = ["red", "wolf", "saw", "plum", "dog"]
    lines = [json.dumps({"text": " ".join(words[(i + j) % 5] for j in range(5 + i % 4))}) for i in range(40)]
    (tmp_path / "c4-train.00000-of-00001.json").write_text("\n".join(lines))
    data = {"source": "c4", "path": str(tmp_path)}
    stage = build_stage(config(tmp_path / "run", stage="pretrain", data=data))
    batch = stage.batch(3)
    rows = 3 * 2
    assert batch.instruction_ids.shape[0] == batch.input_ids.shape[0] == batch.labels.shape[0] == rows
    assert batch.task_index.tolist() == list(range(rows))
    end = 1
    for part, mask in ((batch.instruction_ids, batch.instruction_mask), (batch.input_ids, batch.input_mask)):
        assert all(ids[m.sum() - 1] != end for ids, m in zip(part, mask, strict=True))
    assert all(labels[(labels != -100).sum() - 1] == end for labels in batch.labels)
    run(config(tmp_path / "run", stage="pretrain", data=data))


def test_a_later_stage_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    first = run(config(tmp_path / "first"))
    settings = config(tmp_path / "second", backbone=None, start_from=str(first), training__trainable=["fusion"])
    stage = build_stage(settings)
    source = checkpoint.load(first).model.state_dict()
    assert all(torch.equal(source[name], tensor) for name, tensor in stage.model.state_dict().items())
    assert train(stage, settings.training, tmp_path / "second").exists()


def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_as_adamw_does() -> None:
    """Worst difference of an orthogonal step to the formula in float64: 1.1e-6 (60 matrices)."""
    settings = parse(TrainingConfig, {"steps": 9, "optimizer": "muon", "lr": 0.02}, source="test")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    starts = {"tall": normal(24, 16), "wide": normal(16, 40), "table": normal(9, 5)}
    ours, theirs = ({n: torch.nn.Parameter(x.clone()) for n, x in starts.items()} for _ in range(2))
    optimizer = optim.build({optim.MATRICES: [ours["tall"], ours["wide"]], "backbone": [ours["table"]]}, settings)
    table = torch.optim.AdamW([theirs["table"]], lr=0.02, weight_decay=0.0, betas=optim.BETAS)
    momenta = {name: torch.zeros_like(x) for name, x in starts.items()}
    for _ in range(3):
        gradients = {name: normal(*start.shape) for name, start in starts.items()}
        for name, gradient in gradients.items():
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
        for name in ("tall", "wide"):
            before = theirs[name].detach()
            nesterov = 0.95 * momenta[name] + 0.05 * gradients[name]
            step = polar(nesterov, optim.NEWTON_SCHULZ) * optim.MUON_SCALE * max(before.shape) ** 0.5
            theirs[name].data = before - 0.02 * starts[name].pow(2).mean().sqrt() * step
        scale = starts["table"].pow(2).mean().sqrt()
        before = theirs["table"].detach().clone()
        optimizer.step()
        table.step()
        theirs["table"].data = before + scale * (theirs["table"].detach() - before)
    for name in starts:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)  # worst 1.2e-7 of weights up to 1.2


def test_muon_steps_in_the_direction_of_torchs_muon() -> None:
    """Smallest cosine of 60 matrices: 0.9998; torch computes in bf16."""
    generator = torch.Generator().manual_seed(1)
    for shape in ((24, 16), (16, 40), (32, 32)):
        gradient = torch.randn(*shape, generator=generator)
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = gradient.clone()
        torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0).step()
        cosine = torch.cosine_similarity(-parameter.flatten(), optim.orthogonal(gradient).flatten(), dim=0)
        assert cosine > 0.999


def test_muon_makes_steps_orthogonal_in_bf16_where_weights_are_bf16() -> None:
    """Smallest cosine of 60 matrices to the step in fp32: 0.9998; momenta stay in fp32."""
    gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(2))
    steps = {}
    for precision in ("fp32", "bf16"):
        settings = parse(TrainingConfig, {"steps": 9, "optimizer": "muon", "precision": precision}, source="test")
        parameter = torch.nn.Parameter(torch.ones(24, 16))
        parameter.grad = gradient.clone()
        optimizer = optim.build({optim.MATRICES: [parameter]}, settings)
        optimizer.step()
        assert optimizer.state[parameter]["exp_avg"].dtype == parameter.dtype == torch.float32
        steps[precision] = (parameter.detach() - 1.0).flatten()
    cosine = float(torch.cosine_similarity(steps["fp32"], steps["bf16"], dim=0))
    assert 0.999 < cosine < 1.0 and not torch.equal(steps["fp32"], steps["bf16"])


def test_muons_matrices_are_all_of_a_backbone_but_its_tables() -> None:
    shape = T5Shape(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4, tied=False
    )
    model = TagiModel(T5(shape), methods.get("no_instruction"), HypernetworkConfig(), FusionConfig())
    settings = parse(TrainingConfig, {"steps": 1, "optimizer": "muon", "trainable": ["backbone"]}, source="test")
    parts = optim.trainable(model, settings)
    names = {id(p): n for n, p in model.backbone.named_parameters()}
    rest = {names[id(p)] for p in parts["backbone"]}
    assert {n for n in rest if "norm" not in n} == {
        "embedding.weight", "output.weight", "encoder_position.weight", "decoder_position.weight"
    }  # fmt: skip
    assert len(parts[optim.MATRICES]) == (4 + 2) + (8 + 2)
    assert sum(map(len, parts.values())) == len(names)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_rms", "muon", "adafactor"])
def test_own_encoder_learns_at_the_rate_of_the_language_model_that_it_came_from(optimizer: str) -> None:
    model = small_tagi("hypter")
    assert model.instruction_encoder is not None
    values = {
        "steps": 1,
        "optimizer": optimizer,
        "lr": 0.5,
        "hypernetwork_lr_scale": 6.0,
        "trainable": ["hypernetwork"],
    }
    settings = parse(TrainingConfig, values, source="test")
    groups = optim.build(optim.trainable(model, settings), settings).param_groups
    rates = {id(parameter): group["base_lr"] for group in groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.instruction_encoder.parameters()}
    assert rates.keys() == {id(p) for module in model.part("hypernetwork") for p in module.parameters()}
    assert all(rate == (0.5 if parameter in own else 3.0) for parameter, rate in rates.items())


def polar(matrix: torch.Tensor, coefficients: tuple[float, float, float]) -> torch.Tensor:
    """What five quintic steps make of a matrix, by its singular values, in float64."""
    a, b, c = coefficients
    u, s, v = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return ((u * s) @ v).float()


def test_rms_scaled_adamw_is_adamw_with_rate_times_rms() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=generator) * 0.3
    gradients = [torch.randn(7, 5, generator=generator) for _ in range(4)]
    scaled, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    groups = [{"params": [scaled], "rms_scaled": True}, {"params": [plain], "rms_scaled": False}]
    optimizer = optim.RmsScaledAdamW(groups, lr=0.02)
    first, second = torch.zeros(7, 5), torch.zeros(7, 5)
    expected = start.clone()
    reference = torch.nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([reference], lr=0.02, betas=optim.BETAS, weight_decay=0.0)
    for number, gradient in enumerate(gradients, 1):
        scaled.grad, plain.grad, reference.grad = gradient.clone(), gradient.clone(), gradient.clone()
        optimizer.step()
        adamw.step()
        first = optim.BETAS[0] * first + (1 - optim.BETAS[0]) * gradient
        second = optim.BETAS[1] * second + (1 - optim.BETAS[1]) * gradient**2
        direction = (first / (1 - optim.BETAS[0] ** number)) / ((second / (1 - optim.BETAS[1] ** number)).sqrt() + 1e-8)
        expected = expected - 0.02 * expected.pow(2).mean().sqrt() * direction
    torch.testing.assert_close(scaled.detach(), expected, atol=5e-7, rtol=0)  # worst 6.0e-8 of weights up to 0.7
    assert torch.equal(plain, reference)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.0), ("linear", 0.5)])
def test_learning_rate(schedule: str, expected: float) -> None:
    settings = parse(TrainingConfig, {"steps": 110, "warmup": 10 / 110, "schedule": schedule}, source="test")
    assert optim.learning_rate(0, settings) == pytest.approx(0.1)
    assert optim.learning_rate(10, settings) == pytest.approx(1.0)
    assert optim.learning_rate(60, settings) == pytest.approx(expected)
