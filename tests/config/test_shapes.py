"""The published shapes: their sizes, and what becomes of a checkpoint that is of another."""

import pytest
import torch

from builders import small_shape
from tagi.backbones.t5.model import T5
from tagi.config import BackboneConfig, T5Shape
from tagi.config import files as config_files
from tagi.config.shapes import SHAPES
from tagi.errors import ConfigError
from tagi.model.hypernetwork import parameter_count
from tagi.train.start import check_shape

PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_the_published_number_of_parameters(name: str) -> None:
    config = config_files.parse(BackboneConfig, {"path": "x", "shape": name}, source="backbone")
    assert config.shape is not None
    with torch.device("meta"):
        assert parameter_count(T5(config.shape)) == PUBLISHED[name]


def test_a_named_shape_beside_a_path_is_kept_whole() -> None:
    config = config_files.parse(
        BackboneConfig, {"path": "google/t5-xl-lm-adapt", "shape": "t5-v1_1-xl"}, source="backbone"
    )
    assert config.path == "google/t5-xl-lm-adapt"
    assert config.shape == T5Shape.model_validate(SHAPES["t5-v1_1-xl"])
    assert config_files.parse(BackboneConfig, config.model_dump(mode="json"), source="again") == config


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    found = small_shape(d_ff=48)
    with pytest.raises(ConfigError, match=r"backbone.shape.d_ff: is 40, but the checkpoint some/where has 48"):
        check_shape(found, small_shape(), "some/where")


def test_dropout_is_the_checkpoint_s_to_say() -> None:
    found, expected = small_shape(dropout_rate=0.1, tied=False), small_shape(dropout_rate=0.0, tied=True)
    with pytest.raises(ConfigError, match=r"backbone\.shape\.tied: "):  # the first that differs, but for the dropout
        check_shape(found, expected, "some/where")
