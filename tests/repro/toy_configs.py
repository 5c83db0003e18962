"""The configs that `tagi repro` names, at toy size: their own methods, objectives and data, tiny shapes, few steps."""

from pathlib import Path
from typing import Any

import yaml

from toy_paper import SMOLLM2
from training_runs import DECODER, SHAPE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TOKENIZER = "google/t5-base-lm-adapt"
"""Which `toy_paper.write_paper` writes."""
GPT2 = DECODER | {
    "family": "gpt2", "num_kv_heads": 4, "norm": "layer", "rotary": None, "learned": {}, "activation": "gelu_new",
    "gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip


def write_configs(folder: Path, *, steps: int) -> None:
    """All of them, under `folder/configs`."""
    for file in CONFIGS.rglob("*.yaml"):
        if file.parent.name not in ("accelerate", "backbone"):
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            place = folder / "configs" / file.relative_to(CONFIGS)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(yaml.safe_dump(_toy(values, steps)), encoding="utf-8")


def _toy(values: dict[str, Any], steps: int) -> dict[str, Any]:
    values["training"] |= {"steps": steps, "tasks_per_batch": 2, "rows_per_task": 1, "checkpoint_every": 1000}
    values["fusion"] = {"width": 4, "heads": 2}
    if "hypernetwork" in values:
        values["hypernetwork"] |= {"hidden": 4}
    backbone = values.get("backbone", {})
    if "shape" in backbone:
        backbone["shape"] = SHAPE
    if "decoder" in backbone:
        backbone["decoder"] = GPT2
    if values["prompt"]["style"] == "chat":
        values["prompt"]["style"] = "tk"  # the toy tokenizer has no chat template
    if "path" in backbone:
        values["backbone"] = {"path": SMOLLM2}
    elif backbone.get("tokenizer") == "unigram":
        backbone["tokenizer"] = TOKENIZER
    if values["data"]["source"] == "micro":
        values["data"] |= {"compositions": 20, "valid_tasks": 2, "max_documents": 20}
    values["data"].get("parts", {}).get("p3", {}).pop("only", None)  # whose names are of the whole data set
    if "teachers" in values:
        values["teachers"] |= {"group": "category"}
    return values
