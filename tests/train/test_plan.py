"""Plans of runs: what they say."""

from typing import Any

import pytest

from cli_runs import CONFIG
from tagi.backbones.t5.model import T5
from tagi.config import RunConfig, T5Shape
from tagi.config import files as config_files
from tagi.config.shapes import named_shape
from tagi.errors import CheckpointError, ConfigError
from tagi.model.hypernetwork import parameter_count
from tagi.train.build import build_stage
from tagi.train.plan import plan

LONG = {"path": "no/where", "shape": "t5-v1_1-small"}


def run(**changes: Any) -> RunConfig:
    return config_files.parse(RunConfig, CONFIG | {"output": "runs/x"} | changes, source="test")


def changed(config: RunConfig, *overrides: str) -> RunConfig:
    return config_files.override(config, overrides, source="test")


def test_parameters_are_those_of_the_model_that_is_built() -> None:
    config = run()
    model, found = build_stage(config).model, plan(config)
    assert plan(config, draw=False).parameters == found.parameters
    for part in ("backbone", "hypernetwork", "fusion"):
        assert found.parameters[part] == sum(map(parameter_count, model.part(part)))
    assert found.tokens_are == "measured"
    assert found.flops == found.flops_per_step * 4


def test_accumulation_multiplies_rows_tokens_and_flops_but_not_memory() -> None:
    config = run(backbone=LONG)
    once, twice = plan(config), plan(changed(config, "training.accumulation=2"))
    assert (once.rows_per_step, once.tokens_per_step) == (4, 2 * 32 + 4 * (16 + 8))
    assert once.tokens_are == "upper bound"
    for name in ("rows_per_step", "tokens_per_step", "flops_per_step"):
        assert getattr(twice, name) == 2 * getattr(once, name)
    assert twice.memory == once.memory


def test_memory_of_weights_and_optimizer() -> None:
    config = run(backbone=LONG, training=CONFIG["training"] | {"trainable": ["hypernetwork"]})
    full = plan(config)
    every, own = sum(full.parameters.values()), full.parameters["hypernetwork"]
    assert (full.memory.weights, full.memory.gradients) == (4 * every, 4 * own)
    assert 8 * own < full.memory.optimizer < 8.001 * own  # each tensor's state counts steps too
    half = plan(changed(config, "training.precision=bf16"))
    assert (half.memory.weights, half.memory.gradients) == (2 * every, 2 * own)
    assert half.memory.optimizer == full.memory.optimizer + 4 * own
    large = changed(config, "hypernetwork.rank=32", "hypernetwork.hidden=128", "training.optimizer=adafactor")
    found = plan(large)
    # rows and columns of a matrix, not its entries: 1/53 of a state as large as the weights measured
    assert 0 < found.memory.optimizer < 4 * found.parameters["hypernetwork"] / 20


def test_activation_checkpointing_trades_memory_for_time() -> None:
    config = run(backbone={"path": "no/where", "shape": "t5-v1_1-base"})
    plain, again = plan(config), plan(changed(config, "training.activation_checkpointing=true"))
    assert again.memory.activations < plain.memory.activations
    assert 1.1 < again.flops / plain.flops < 1.5  # one forward pass more


def test_an_online_teacher_costs_its_forward_pass_and_its_weights() -> None:
    config = run(backbone=LONG)
    teacher = ["objective.lambda_kl=5", "objective.teacher.kind=instruct", "objective.teacher.checkpoint=x"]
    alone, taught = plan(config), plan(changed(config, *teacher))
    cached = plan(changed(config, *teacher, "objective.teacher.cache=y"))
    assert taught.memory.weights - alone.memory.weights == 4 * alone.parameters["backbone"]
    assert taught.flops > alone.flops
    assert cached.flops == alone.flops


def test_teachers_are_planned_in_waves() -> None:
    backbone = {"path": "no/where", "shape": "t5-v1_1-base"}
    config = run(stage="teachers", method="no_instruction", backbone=backbone, data={"source": "sni", "path": "none"})
    found = plan(config)
    sites, rank = 2 * 3 * 12, 32
    assert found.parameters["teachers"] == 32 * sites * rank * (768 + 768)
    assert found.steps == 4 * 2
    assert "60 teachers in 2 chunks of at most 32" in found.notes
    assert plan(changed(config, "teachers.only=[QA]")).steps == 4


def test_a_later_stage_is_planned_before_the_earlier_one_has_run() -> None:
    first = run(backbone=LONG, output="runs/one")
    second = changed(first, "backbone=null", "start_from=runs/one/final", "hypernetwork.rank=9")
    assert plan(second, [first]).parameters == plan(first).parameters
    with pytest.raises(CheckpointError, match=r"runs/one/final: is no TAGI checkpoint"):
        plan(second)


def test_a_checkpoint_that_is_there_says_its_own_shape(checkpoint: Any) -> None:
    config = changed(run(), "backbone=null", f"start_from={checkpoint}")
    assert plan(config).parameters == plan(run()).parameters


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.trainable=[hypernetwork]", "method=fusion_only"], "training.trainable: method fusion_only"),
        (["stage=metatrain"], "stage: metatrain"),
        (["stage=teachers"], "method: stage teachers"),
        (["data.source=c4", "data.path=x"], "data.source: c4"),
    ],
)
def test_a_stage_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(changed(run(), *overrides))


def test_an_unknown_backbone_needs_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"with backbone.shape a dry run works without it"):
        plan(run(backbone={"path": "/no/where"}))


@pytest.mark.parametrize("method", ["hypter", "hypertuning_lora"])
def test_own_encoder_is_counted(method: str) -> None:
    """Its parameters with the hypernetwork's, all of them trained, and its backward pass, which a shared one lacks."""
    alone = {"training": CONFIG["training"] | {"trainable": ["hypernetwork"]}, "backbone": LONG}
    alone["prompt"] = CONFIG["prompt"] | {"demonstrations": 2}
    own = plan(run(method=method, **alone))
    shared = plan(changed(run(method=method, **alone), "hypernetwork.instruction_encoder=lm"))
    encoder = parameter_count(T5(T5Shape.model_validate(named_shape("t5-v1_1-small"))).reader())
    assert own.parameters["hypernetwork"] - shared.parameters["hypernetwork"] == encoder
    assert own.parameters["backbone"] == shared.parameters["backbone"]
    assert 8 * encoder <= own.memory.optimizer - shared.memory.optimizer < 8.001 * encoder
    assert own.memory.activations > shared.memory.activations
    assert own.flops_per_step > shared.flops_per_step
    assert any(f"{encoder:,} of them in an instruction encoder of its own" in note for note in own.notes)


SMOLLM2 = {
    "vocab_size": 49_152, "d_model": 576, "d_ff": 1536, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
    "head_dim": 64, "max_positions": 8192, "rotary": {"theta": 100_000.0}, "eos_token_ids": [2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "method", "part"),
    [
        ("metatrain", "metatrain", "backbone"),
        ("finetune", "tagi", "hypernetwork"),
        ("teachers", "no_instruction", "teachers"),
    ],
)
def test_a_decoder_only_model(stage: str, method: str, part: str) -> None:
    training = CONFIG["training"] | {"trainable": ["hypernetwork" if part == "teachers" else part]}
    backbone = {"decoder": SMOLLM2, "tokenizer": "no/where"}
    data = {"source": "sni", "path": "no/where"}
    found = plan(run(stage=stage, method=method, backbone=backbone, data=data, training=training))
    assert found.parameters["backbone"] == 134_515_008
    assert (found.trainable, found.tokens_are) == ([part], "upper bound")
    each = found.flops_per_step / (found.tokens_per_step * 2 * found.parameters["backbone"])
    # forward, back to what was read, back to a trained weight; only targets meet the output, instructions no gradient
    assert 1.2 < each < 3.0 if part != "backbone" else 2.0 < each < 3.3
    assert found.memory.total > found.memory.weights == 4 * sum(found.parameters.values())
