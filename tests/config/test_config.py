"""The config tree: YAML in and out, overrides, and one sentence for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builders import small_shape
from tagi import methods
from tagi.config import HypernetworkConfig, RunConfig, T5Shape
from tagi.config import files as config_files
from tagi.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "stage": "finetune",
    "method": "tagi",
    "backbone": {"path": "google/t5-v1_1-base"},
    "data": {"source": "micro"},
    "training": {"steps": 10},
    "output": "runs/x",
}
EVERY_SECTION: dict[str, Any] = MINIMAL | {
    "stage": "finetune",
    "backbone": {"shape": {"vocab_size": 99, "gated": True, "activation": "gelu_new"}, "tokenizer": "unigram"},
    "hypernetwork": {"rank": 4, "alpha": 8.0},
    "fusion": {"width": 24, "every": 2},
    "prompt": {"style": "plain", "demonstrations": 2},
    "data": {"source": "sni", "path": "data/sni", "max_instances": None},
    "training": {"steps": 10, "lr": 3e-4, "trainable": ["backbone", "fusion"], "warmup": 0.5},
}


def written(folder: Path, values: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("values", [MINIMAL, EVERY_SECTION], ids=["minimal", "every section"])
def test_dump_then_load_gives_an_equal_config(values: dict[str, Any], tmp_path: Path) -> None:
    first = config_files.load(written(tmp_path, values))
    again = config_files.load(written(tmp_path, config_files.dump(first)))
    assert again == first
    assert again.model_dump() == first.model_dump()


def test_values_arrive_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    config = config_files.load(written(tmp_path, EVERY_SECTION))
    assert config.backbone is not None
    assert config.backbone.shape == T5Shape(vocab_size=99, gated=True, activation="gelu_new")
    assert config.training.trainable == ("backbone", "fusion")
    assert config.training.accumulation == 1
    assert config.data.max_instances is None


def test_config_is_immutable(tmp_path: Path) -> None:
    config = config_files.load(written(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.output = "elsewhere"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=500", "training", "steps", 500),
        ("training.lr=3e-4", "training", "lr", 3e-4),
        ("training.trainable=[fusion]", "training", "trainable", ("fusion",)),
        ("hypernetwork.rank=7", "hypernetwork", "rank", 7),
        ("fusion.width=null", "fusion", "width", None),
        ("data.path=a=b", "data", "path", "a=b"),
    ],
)
def test_override_sets_one_key(override: str, section: str, key: str, value: Any, tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    plain, changed = config_files.load(path).model_dump(), config_files.load(path, [override]).model_dump()
    assert changed[section][key] == value
    plain[section][key] = value
    assert changed == plain


def test_later_overrides_win_and_may_replace_a_source(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    assert config_files.load(path, ["output=a", "output=b"]).output == "b"
    fresh = config_files.load(path, ["backbone.path=null", "backbone.shape.vocab_size=9", "backbone.tokenizer=micro"])
    assert fresh.backbone is not None
    assert fresh.backbone.shape == T5Shape(vocab_size=9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=5", "training.step: unknown key, did you mean steps?"),
        ("hypernetwork.rnk=5", "hypernetwork.rnk: unknown key, did you mean rank?"),
        ("backbone.shape.d_modell=5", "backbone.shape.d_modell: unknown key, did you mean d_model?"),
        ("qqqq=5", "qqqq: unknown key"),
        ("data={sorce: micro}", "data.sorce: unknown key, did you mean source?"),
        ("training.steps=many", "training.steps: Input should be a valid integer"),
        ("training.steps=0", "training.steps: Input should be greater than 0"),
        ("training.trainable=[all]", "training.trainable.0: Input should be 'backbone', 'hypernetwork' or 'fusion'"),
        ("fusion=wide", "fusion: Input should be a valid dictionary"),
        ("data.source=sni", "data: data.path is required for source=sni"),
        ("backbone=null", "give either backbone (a fresh start) or start_from (an earlier stage)"),
        ("start_from=runs/y", "give either backbone (a fresh start) or start_from (an earlier stage)"),
        ("backbone.path=null", "backbone: give either path (a checkpoint) or shape or decoder (random initialisation)"),
        (
            "backbone.shape=t5-v1_1-bse",
            "backbone.shape: 't5-v1_1-bse' is no published shape, did you mean t5-v1_1-base?",
        ),
        ("backbone.shape=qqq", "backbone.shape: 'qqq' is no published shape; there are t5-small, t5-base, "),
        ("data.source=p3", "data: data.path is required for source=p3"),
        ("training.steps", "training.steps: an override is written key=value"),
        ("=5", "=5: an override is written key=value"),
        ("training.steps.now=5", "training.steps.now=5: steps holds a value, not further keys"),
        ("output=[", "output=[: the value is not YAML"),
    ],
)
def test_mistake_is_one_sentence_that_names_the_field(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_files.load(written(tmp_path, MINIMAL), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["output", "backbone.path", "data.path", "bank", "start_from"])
@pytest.mark.parametrize("value", ['""', '" "'])
def test_nothing_left_of_a_place_is_no_working_directory(field: str, value: str, tmp_path: Path) -> None:
    """An override that a shell makes of a variable that is not set."""
    with pytest.raises(ConfigError, match=rf"{field}: is empty$"):
        config_files.load(written(tmp_path, MINIMAL), [f"{field}={value}"])


@pytest.mark.parametrize("section", ["data", "training"])
@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_that_cannot_be_drawn_from_are_refused(section: str, seed: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.seed: Input should be"):
        config_files.load(written(tmp_path, MINIMAL), [f"{section}.seed={seed}"])


def test_random_backbone_needs_a_tokenizer(tmp_path: Path) -> None:
    values = MINIMAL | {"backbone": {"shape": {"vocab_size": 9}}}
    with pytest.raises(ConfigError, match=r"backbone: a backbone from random initialisation needs a tokenizer"):
        config_files.load(written(tmp_path, values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a mapping of config keys"),
        ("- a\n- b\n", "must hold a mapping of config keys"),
        ("a: [", "is not YAML"),
        ("stage: finetune\n", "method: Field required"),
    ],
)
def test_file_that_is_no_config_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        config_files.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_missing_file_and_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file or directory\)"):
        config_files.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.yaml: is not UTF-16"):
        config_files.load(tmp_path / "binary.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["stage", "method", "backbone", "hypernetwork", "fusion", "prompt", "data", "training", "output", "start_from"]


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), json_values, max_size=4))
def test_malformed_values_are_a_config_error_or_a_config(changes: dict[str, Any]) -> None:
    try:
        config = config_files.parse(RunConfig, MINIMAL | changes, source="run.yaml")
    except ConfigError:
        return
    assert config_files.parse(RunConfig, json.loads(config.model_dump_json()), source="again") == config


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (16.0, 4.0), (2.0, 0.5)])
def test_lora_scale_is_alpha_over_rank(alpha: float | None, scale: float) -> None:
    assert HypernetworkConfig(rank=4, alpha=alpha).scale == scale


def test_inner_width_is_that_of_all_heads() -> None:
    assert small_shape(num_heads=3, d_kv=5).inner_dim == 15


def test_exact_gated_gelu_is_refused_because_its_files_would_read_as_another() -> None:
    with pytest.raises(ConfigError, match="shape: activation: the family's gated GELU is gelu_new"):
        config_files.parse(T5Shape, {"vocab_size": 9, "gated": True, "activation": "gelu"}, source="shape")


PUBLISHED = {
    # Table 8: meta-train, pre-train, concat., fusion, low update parameters, low inference cost, unseen tasks
    "full_ft": (False, False, True, True, False, False, 0),
    "metatrain": (True, False, True, True, False, False, 3),
    "hypter": (True, False, False, False, True, True, 1),
    "hypertuning_prefix": (True, True, False, False, True, True, 1),
    "hypertuning_lora": (True, True, False, False, True, True, 1),
    "hint": (True, True, True, False, True, True, 2),
    "tagi": (True, True, True, True, True, True, 3),
}


def test_methods_are_the_rows_of_tables_1_and_8() -> None:
    columns = (
        "meta_trained",
        "pretrained",
        "concatenates_instruction",
        "fuses_instruction",
        "low_update_parameters",
        "low_inference_cost",
        "unseen_tasks",
    )
    found = {name: tuple(getattr(methods.get(name), column) for column in columns) for name in PUBLISHED}
    assert found == PUBLISHED


def test_only_tagi_and_its_ablations_learn_from_teachers() -> None:
    """Tables 1 and 8, "Instr. Learning": TAGI alone has a tick."""
    learned = {method.name for method in methods.METHODS if method.distilled}
    assert learned == {"tagi", "lora_only", "lora_concat", "lora_fusion", "fusion_only"}


def test_method_by_name_or_the_nearest() -> None:
    assert methods.get("tagi").title == "TAGI"
    with pytest.raises(ConfigError, match=r"method: 'lora_olny' is unknown, did you mean lora_only\?"):
        methods.get("lora_olny")
    with pytest.raises(ConfigError, match="method: 'xyz' is unknown; there are no_ft, full_ft, metatrain, "):
        methods.get("xyz")
