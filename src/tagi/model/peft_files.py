"""The one place that knows PEFT's files: a LoRA as `PeftModel.from_pretrained` opens it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tagi.files import atomic_folder
from tagi.model.backbone import Modules, Site
from tagi.model.t5_hf import module_name

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_PREFIX = "base_model.model"


def save_peft(lora: Modules, base: str, folder: Path, about: str) -> None:
    """Write one task's LoRA whole or not at all: PEFT's config, its tensors and a model card.

    Args:
        base: folder or hub name of the language model, as `transformers` opens it.
        about: what the LoRA is, for the card.

    Raises:
        DiskError: the disk is full or cannot be written.
        ValueError: no LoRA, one of more than one task, or sites that differ in rank or scale.
    """
    config = _config(lora, base)
    tensors = {}
    for site, factors in lora.items():
        tensors[f"{_PREFIX}.{module_name(site)}.lora_A.weight"] = factors.a[0]
        tensors[f"{_PREFIX}.{module_name(site)}.lora_B.weight"] = factors.b[0]
    with atomic_folder(folder) as draft:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, draft / WEIGHTS)
        (draft / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (draft / CARD).write_text(_card(base, about), encoding="utf-8")


def _config(lora: Mapping[Site, Any], base: str) -> dict[str, Any]:
    """PEFT's LoraConfig; it scales by alpha / r, so alpha = scale · r."""
    kinds = {(factors.a.shape[0], factors.a.shape[1], factors.scale) for factors in lora.values()}
    if len(kinds) != 1 or (tasks_rank_scale := kinds.pop())[0] != 1:
        raise ValueError("PEFT's files hold the LoRA of one task, with one rank and scale")
    _, rank, scale = tasks_rank_scale
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(module_name(site) for site in lora),
    }


def _card(base: str, about: str) -> str:
    front = {"base_model": base, "library_name": "peft", "tags": ["lora", "tagi"]}
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return f"""---
{header}
---

# LoRA in PEFT's layout

{about}

```python
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained({base!r}), FOLDER)
```

Weights are safetensors; `lora_alpha / r` is the scale of the product B A.
"""
