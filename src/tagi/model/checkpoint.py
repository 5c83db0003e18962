"""TAGI checkpoints: the trained parts, the config, and the reference to the backbone.

A folder holds `tagi.json`, `model.safetensors` (hypernetwork, fusion and, if separate, the instruction
encoder) and `tokenizer*`. A backbone that was trained along lies beside them in `backbone/`, a Hugging Face
folder; a frozen one is kept by reference, by path or hub name and fingerprint. A path is kept in two ways, whole and as
seen from the checkpoint, so that the checkpoint opens from any working directory, after it was moved, and after both
were moved together.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tagi import methods
from tagi.backbones.files import check_type, locate, read_safetensors
from tagi.backbones.language_model import load_language_model, save_language_model
from tagi.config import Frozen, FusionConfig, HypernetworkConfig, PromptConfig
from tagi.config.files import read_json
from tagi.errors import CheckpointError, ConfigError
from tagi.model.tagi import TagiModel

CONFIG, WEIGHTS, BACKBONE = "tagi.json", "model.safetensors", "backbone"
KIND = "TAGI checkpoint"
FORMAT = 2
_HASHED_AT_A_TIME = 4


class ModelConfig(Frozen):
    """`tagi.json`: everything needed to build the model again, apart from tensors."""

    format: int = FORMAT
    method: str
    hypernetwork: HypernetworkConfig
    fusion: FusionConfig
    prompt: PromptConfig
    backbone: str
    """Path or hub name of the backbone; `backbone` is the folder beside this file."""
    backbone_fingerprint: str
    backbone_from_here: str | None = None
    """The same folder as seen from the checkpoint's, where it lies on the same machine."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory, and the folder that its tokenizer files lie in."""

    model: TagiModel
    config: ModelConfig
    folder: Path
    fingerprint: str
    """Of the whole model, as `fingerprint` would take it."""


def fingerprint(model: nn.Module) -> str:
    """Hash of every tensor of a model: name, type, shape and all bytes."""
    return fingerprint_tensors(model.state_dict())


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The same hash of named tensors."""
    return _joined(tensors, _hashes(tensors))


def _joined(tensors: Mapping[str, Tensor], hashes: Mapping[str, bytes]) -> str:
    """The hash of named tensors from the hashes of their bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + hashes[name])
    return digest.hexdigest()[:16]


def _hashes(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Of every tensor's bytes; several are read at a time, for one core hashes less than disks deliver."""
    with ThreadPoolExecutor(_HASHED_AT_A_TIME) as pool:
        return dict(zip(tensors, pool.map(_hash, tensors.values()), strict=True))


def _hash(tensor: Tensor) -> bytes:
    """Of a tensor's bytes, which are not copied where they lie on the CPU in order."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()


def write(model: TagiModel, config: ModelConfig, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """The files of a checkpoint, into a folder that exists; a backbone inside is said to be what is written of it."""
    if config.backbone == BACKBONE:
        save_language_model(model.backbone, folder / BACKBONE, dtype)
        written = {name: t.to(dtype).float() for name, t in model.backbone.state_dict().items()}
        config = config.model_copy(update={"backbone_fingerprint": fingerprint_tensors(written)})
    own = {name: t.to("cpu", dtype).contiguous() for name, t in own_tensors(model).items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    if config.backbone != BACKBONE and Path(config.backbone).is_dir():
        # Seen from a draft, the backbone lies the same way as from the folder whose place the draft takes.
        whole, seen = placed(config.backbone, folder)
        config = config.model_copy(update={"backbone": whole, "backbone_from_here": seen})
    (folder / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")


def placed(source: str, folder: Path) -> tuple[str, str | None]:
    """A folder of this machine in two ways, whole and as seen from another; a hub name is itself and is not seen."""
    if not Path(source).is_dir():
        return source, None
    whole = os.path.abspath(source)
    return whole, os.path.relpath(os.path.realpath(whole), os.path.realpath(folder))


def found_again(source: str, seen: str | None, folder: Path) -> str:
    """What `placed` gave: where it is seen from the folder, if it still is there, and what was said of it if not."""
    if seen is not None:
        beside = Path(os.path.normpath(os.path.join(os.path.realpath(folder), seen)))
        if beside.is_dir():
            return str(beside)
    return source


def own_tensors(model: TagiModel) -> dict[str, Tensor]:
    """Every tensor of the model that is not the backbone's."""
    parts = {name: part for name, part in model.named_children() if part is not model.backbone}
    return {f"{name}.{key}": t.detach() for name, part in parts.items() for key, t in part.state_dict().items()}


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder.

    Raises:
        CheckpointError: no checkpoint, or written by a later version.
    """
    config = read_json(ModelConfig, folder / CONFIG, KIND)
    if config.format != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: format: {config.format} is not {FORMAT}; another version wrote it")
    return config


def base_source(source: str | Path) -> str:
    """Where `transformers` finds the language model of a checkpoint of ours; a Hugging Face folder is its own.

    Raises:
        CheckpointError: no such folder or hub name, or a damaged checkpoint.
    """
    folder = locate(source)
    if not (folder / CONFIG).exists():
        return str(source)
    return _backbone_of(folder, read_config(folder))


def _backbone_of(folder: Path, config: ModelConfig) -> str:
    if config.backbone == BACKBONE:
        return str(folder / BACKBONE)
    return found_again(config.backbone, config.backbone_from_here, folder)


def load(folder: Path, *, backbone: str | None = None) -> Loaded:
    """Build the model of a checkpoint; `backbone` replaces the recorded reference (a folder that moved).

    Raises:
        CheckpointError: no checkpoint, half-written, damaged, or another backbone than it was trained with.
    """
    config = read_config(folder)
    inside = config.backbone == BACKBONE and backbone is None
    source = backbone or _backbone_of(folder, config)
    base = load_language_model(source)
    hashes = _hashes(base.state_dict())
    if not inside and (found := _joined(base.state_dict(), hashes)) != config.backbone_fingerprint:
        raise CheckpointError(
            f"{folder}: belongs to another backbone (fingerprint {config.backbone_fingerprint}, "
            f"but {source} has {found})"
        )
    try:
        model = TagiModel(base, methods.get(config.method), config.hypernetwork, config.fusion)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    file = folder / WEIGHTS
    tensors, own = read_safetensors(file), own_tensors(model)
    if missing := sorted(own.keys() - tensors.keys()):
        raise CheckpointError(f"{file}: tensor {missing[0]} is missing")
    if extra := sorted(tensors.keys() - own.keys()):
        raise CheckpointError(f"{file}: tensor {extra[0]} is no part of the model that {CONFIG} describes")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(f"{file}: tensor {name} has another shape than {CONFIG} says")
        check_type(file, name, tensors[name])
        tensor.copy_(tensors[name])
    hashes = _hashes(own) | {f"backbone.{name}": values for name, values in hashes.items()}
    return Loaded(model.eval(), config, folder, _joined(model.state_dict(), hashes))
