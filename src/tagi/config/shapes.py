"""The published T5 shapes by name, as in the `config.json` of their checkpoints.

`t5-v1_1-*` is also the shape of the LM-adapted and the Flan models of that size; T0 3B and 11B are xl and xxl.
"""

import difflib
from typing import Any

_FIRST = {"activation": "relu", "gated": False, "tied": True, "scale_outputs": True}
_SECOND = {"activation": "gelu_new", "gated": True, "tied": False, "scale_outputs": False}


def _shape(version: dict[str, Any], d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    depth = {"num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}
    widths = {"vocab_size": 32_128, "d_model": d_model, "d_kv": 64, "d_ff": d_ff, "dropout_rate": 0.1}
    return widths | depth | version


SHAPES: dict[str, dict[str, Any]] = {
    "t5-small": _shape(_FIRST, 512, 2048, 6, 8),
    "t5-base": _shape(_FIRST, 768, 3072, 12, 12),
    "t5-v1_1-small": _shape(_SECOND, 512, 1024, 8, 6),
    "t5-v1_1-base": _shape(_SECOND, 768, 2048, 12, 12),
    "t5-v1_1-large": _shape(_SECOND, 1024, 2816, 24, 16),
    "t5-v1_1-xl": _shape(_SECOND, 2048, 5120, 24, 32),
    "t5-v1_1-xxl": _shape(_SECOND, 4096, 10_240, 24, 64),
}
"""Name -> the fields of `tagi.config.T5Shape`."""


def named_shape(name: str) -> dict[str, Any]:
    """The fields of a published shape.

    Raises:
        ValueError: unknown; names the nearest.
    """
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(SHAPES)}"
        raise ValueError(f"{name!r} is no published shape{hint}")
    return dict(SHAPES[name])
