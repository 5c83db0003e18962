"""Run files and overrides that are no config: one sentence each, whatever their YAML does."""

from pathlib import Path

import pytest
from test_config import MINIMAL, written

from tagi.config import files as config_files
from tagi.errors import ConfigError

TEXT = """
stage: finetune
method: tagi
backbone: {path: google/t5-v1_1-base}
data: {source: micro}
training: {steps: 10}
output: runs/x
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_the_text_is_a_config(tmp_path: Path) -> None:
    assert config_files.load(written(tmp_path, TEXT)) == config_files.load(written(tmp_path, MINIMAL))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT + "method: metatrain\n", ["the key method stands twice", "line 2"]),
        (TEXT.replace("steps: 10", "steps: 10, steps: 20"), ["the key steps stands twice"]),
        (TEXT + "shots: &a [*a]\n", ["nested too deep"]),
        (TEXT + "shots: " + "[" * 50_000, ["nested too deep"]),
        (TEXT + "shots: " + "[" * 150 + "]" * 150, ["nested too deep"]),
        (TEXT + BOMB, ["more than 100,000 values"]),
        (TEXT + "3: x\n", ["3"]),
        (TEXT + "[a]: x\n", ["is not YAML"]),
        (TEXT + "null: x\n", ["None"]),
        (TEXT + "\tseed: 3\n", ["is not YAML"]),
        (TEXT + "seed: !!python/object/apply:os.system [ls]\n", ["is not YAML"]),
        (TEXT + "seed: !!int plum\n", ["is not YAML"]),
        (TEXT + "seed: !!timestamp plum\n", ["is not YAML"]),
        (TEXT.replace("steps: 10", "steps: 2020-99-99"), ["training.steps"]),
        (TEXT.replace("steps: 10", "steps: .nan"), ["training.steps"]),
        (TEXT.replace("steps: 10", "steps: 10, lr: .nan"), ["training.lr", "finite"]),
        (TEXT.replace("steps: 10", "steps: 10, lr: -.inf"), ["training.lr", "finite"]),
        (TEXT.replace("steps: 10", "steps: 10, lr: nan"), ["training.lr", "finite"]),
        (TEXT + "\x07", ["is not YAML"]),
        ("- a\n- b\n", ["must hold a mapping"]),
        ("a: b\n---\nc: d\n", ["is not YAML"]),
    ],
)
def test_a_run_file_that_is_none(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_files.load(written(tmp_path, text))
    assert [word for word in ("run.yaml", *words) if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lr=.inf", ["training.lr", "finite"]),
        ("training.lr=nan", ["training.lr", "finite"]),
        ("training={steps: 1, steps: 2}", ["the key steps stands twice"]),
        ("training=&a [*a]", ["nested too deep"]),
        ("training.steps=!!int plum", ["training.steps", "is not YAML"]),
        ("training.lr=caf\udce9", ["training.lr", "is not UTF-8"]),
        ("caf\udce9=1", ["is not UTF-8"]),
        ("training.steps=\x00", ["is not YAML"]),
    ],
)
def test_an_override_that_is_none(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_files.load(written(tmp_path, TEXT), [override])
    assert [word for word in words if word not in str(caught.value)] == []


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    text = TEXT.replace("data: {source: micro}", "data: &d\n  source: micro\n  seed: 3")
    text = text.replace("backbone: {", "backbone: &b {").replace("training: {steps: 10}", "training:\n  <<: {steps: 7}")
    config = config_files.load(written(tmp_path, text))
    assert (config.data.seed, config.training.steps) == (3, 7)
