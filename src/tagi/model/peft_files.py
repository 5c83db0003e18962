"""The one place that knows PEFT's files: a LoRA as `PeftModel.from_pretrained` opens and writes it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tagi.backbones.base import Backbone
from tagi.backbones.files import check_shape, check_type, read_safetensors
from tagi.backbones.lora import one_kind
from tagi.backbones.sites import Factors, Site
from tagi.config import Frozen, Positive
from tagi.config.files import read_json
from tagi.errors import CheckpointError
from tagi.files import atomic_folder, read_whole
from tagi.model.cards import CARD, card

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_BASE = "tagi_base_fingerprint"
"""Metadata of our own in the weights' file: the language model that the LoRA was made for."""
_INERT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size", "eva_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings that change nothing of what a trained LoRA computes."""
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the language model's own weights alone."""


class _LoraConfig(Frozen):
    """The settings that we follow; every other one must be off."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: Literal["LORA"]
    r: Positive
    lora_alpha: float = Field(allow_inf_nan=False)
    target_modules: list[str] = Field(min_length=1)
    use_rslora: bool = False
    init_lora_weights: Any = True

    @property
    def scale(self) -> float:
        """Of the product B A."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def is_peft(folder: Path) -> bool:
    """Whether a folder holds PEFT's files."""
    return (folder / CONFIG).exists()


def load_peft(folder: Path, backbone: Backbone, fingerprint: str) -> dict[Site, Factors]:
    """The LoRA of a folder, for a language model with that fingerprint; who else than we wrote it cannot be checked.

    Raises:
        CheckpointError: something else than LoRA of projections that can be adapted, an unsupported setting, a tensor
            that is missing or of another shape, values that are no finite numbers, made by us for another language
            model, or pickled; names file and field or tensor.
    """
    return read_whole(folder, lambda: _loaded(folder, backbone, fingerprint))


def _loaded(folder: Path, backbone: Backbone, fingerprint: str) -> dict[Site, Factors]:
    config = read_json(_LoraConfig, folder / CONFIG, "PEFT folder")
    if config.init_lora_weights not in _INITIAL:
        said = repr(config.init_lora_weights)
        raise CheckpointError(f"{folder / CONFIG}: init_lora_weights: {said} changes the language model too")
    for name, value in (config.model_extra or {}).items():
        off = value is None or value is False or value in ("none", [], {})
        if name not in _INERT and not off:
            raise CheckpointError(f"{folder / CONFIG}: {name}: {value!r} is not supported")
    sites = _targeted(config, backbone, folder / CONFIG)
    file = folder / WEIGHTS
    if (folder / PICKLED).exists() and not file.exists():
        raise CheckpointError(f"{folder / PICKLED}: is pickled and never opened; save it again as {WEIGHTS}")
    tensors = read_safetensors(file)
    _check_base(file, fingerprint)
    names = {site: backbone.site_name(site) for site in sites}
    _check_names(tensors.keys(), names.values(), file)
    return {site: _factors(tensors, name, config, backbone.site_shape(site), file) for site, name in names.items()}


def save_peft(
    lora: Mapping[Site, Factors],
    backbone: Backbone,
    base: str,
    folder: Path,
    about: str,
    *,
    fingerprint: str | None = None,
    invocation: Sequence[int] = (),
) -> None:
    """Write one task's LoRA whole or not at all: PEFT's config, its tensors and a model card.

    Args:
        base: folder or hub name of the language model, as `transformers` opens it.
        about: what the LoRA is, for the card.
        fingerprint: of the language model, so that `load_peft` can refuse another.
        invocation: tokens from which on it is active (activated LoRA); without any it always is.

    Raises:
        CheckpointError: sites that this family's files have in one projection (GPT-2's q, k and v).
        DiskError: the disk is full or cannot be written.
        ValueError: no LoRA, one of more than one task, or sites that differ in rank or scale.
    """
    names = {site: backbone.site_name(site) for site in lora}
    if len(set(names.values())) != len(names):
        raise CheckpointError(
            f"{folder}: {backbone.family} has q, k and v in one projection, which PEFT cannot adapt apart"
        )
    config = _config(lora, names.values(), base, causal=not backbone.has_encoder)
    if invocation:
        config["alora_invocation_tokens"] = list(invocation)
    tensors = {_tensor(names[site], "A"): factors.a[0] for site, factors in lora.items()}
    tensors |= {_tensor(names[site], "B"): factors.b[0] for site, factors in lora.items()}
    said = {"format": "pt"} | ({_BASE: fingerprint} if fingerprint is not None else {})
    with atomic_folder(folder) as draft:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, draft / WEIGHTS, said)
        (draft / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (draft / CARD).write_text(_card(base, about, causal=not backbone.has_encoder), encoding="utf-8")


def _targeted(config: _LoraConfig, backbone: Backbone, file: Path) -> list[Site]:
    """The projections that a config names, as PEFT matches names: whole, or their last parts."""
    names = {site: f".{backbone.site_name(site)}" for site in backbone.site_weights()}
    for target in config.target_modules:
        if not any(name.endswith(f".{target}") for name in names.values()):
            raise CheckpointError(
                f"{file}: target_modules: {target!r} is no projection of this model that LoRA can adapt"
            )
    ends = tuple(f".{target}" for target in config.target_modules)
    return [site for site, name in names.items() if name.endswith(ends)]


def _check_names(found: Set[str], names: Iterable[str], file: Path) -> None:
    needed = {_tensor(name, factor) for name in names for factor in "AB"}
    if missing := sorted(needed - found):
        raise CheckpointError(f"{file}: tensor {missing[0]} is missing")
    if unknown := sorted(found - needed):
        raise CheckpointError(f"{file}: tensor {unknown[0]} is no LoRA of a module that {CONFIG} targets")


def _factors(
    tensors: Mapping[str, Tensor], name: str, config: _LoraConfig, widths: tuple[int, int], file: Path
) -> Factors:
    a, b = (_tensor(name, factor) for factor in "AB")
    check_shape(file, a, tensors[a], config.r, widths[0])
    check_shape(file, b, tensors[b], widths[1], config.r)
    check_type(file, a, tensors[a])
    check_type(file, b, tensors[b])
    return Factors(tensors[a][None], tensors[b][None], config.scale)


def _tensor(name: str, factor: str) -> str:
    return f"base_model.model.{name}.lora_{factor}.weight"


def _check_base(file: Path, fingerprint: str) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            made_for = (opened.metadata() or {}).get(_BASE, fingerprint)
    except (SafetensorError, OSError, RuntimeError) as error:  # replaced since its tensors were read
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if made_for != fingerprint:
        raise CheckpointError(f"{file}: belongs to another language model (fingerprint {made_for}, not {fingerprint})")


def _config(lora: Mapping[Site, Any], names: Iterable[str], base: str, *, causal: bool) -> dict[str, Any]:
    """PEFT's LoraConfig; it scales by alpha / r, so alpha = scale · r."""
    rank, scale = one_kind(lora)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(names),
    }


def _card(base: str, about: str, *, causal: bool) -> str:
    auto = "AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM"
    use = f"""from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained({base!r}), FOLDER)"""
    about += "\n\n`lora_alpha / r` is the scale of the product B A."
    return card("LoRA in PEFT's layout", about, use, base=base, library_name="peft", tags=["lora", "tagi"])
