"""Reading Hugging Face folders, for every family."""

import json
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from tagi import bundled, hub
from tagi.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def locate(source: str | Path) -> Path:
    """The local folder of a checkpoint: the folder itself, or what is bundled or on the hub by that name; a `Path` is
    no name.

    Raises:
        CheckpointError: there is none, see `tagi.hub.snapshot`.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path):
        raise CheckpointError(f"{source}: no such folder")
    return bundled.checkpoint(source) or hub.snapshot(source)


def read_hf_config(folder: Path) -> PretrainedConfig:
    """The `config.json` of a folder, or of a hub's model, of which nothing else is downloaded.

    Raises:
        CheckpointError: missing, or no model's; or see `tagi.hub.snapshot`.
    """
    from transformers import AutoConfig  # the names of all its families; a converted GGUF never needs them

    found = folder if folder.is_dir() else hub.snapshot(str(folder), ("config.json",))
    try:
        return AutoConfig.from_pretrained(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder}/config.json: is missing or is no model config") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, of one file or of the shards that an index names."""
    single = (folder / WEIGHTS).is_file() or not (folder / INDEX).exists()
    tensors: dict[str, Tensor] = {}
    for file in [folder / WEIGHTS] if single else _shards(folder / INDEX):
        tensors |= read_safetensors(file)
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which may lie in folders below; links in them are followed, as a hub's cache is
    made of links."""
    try:
        names = {PurePosixPath(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: is damaged (no weight_map of file names)") from error
    if outside := sorted(str(name) for name in names if name.is_absolute() or ".." in name.parts):
        raise CheckpointError(f"{index}: weight_map names {outside[0]}, which does not lie in the folder")
    return [index.parent / name for name in sorted(names)]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one file.

    Raises:
        CheckpointError: the file is missing, or cut short, or no safetensors file, or holds NaN or infinity.
    """
    if not file.exists():
        raise CheckpointError(f"{file}: is missing (weights are read from safetensors only)")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: torch could not map the file
        raise CheckpointError(f"{file}: is damaged or half-written ({error})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_finite(file, name, tensor)
    return tensors


def check_shape(file: Path, name: str, tensor: Tensor, *expected: int | str) -> None:
    """Refuse a tensor of another shape; a size that may be anything is given as its name.

    Raises:
        CheckpointError: names file, tensor and both shapes.
    """
    found = tuple(tensor.shape)
    fixed = [(size, want) for size, want in zip(found, expected, strict=False) if isinstance(want, int)]
    if len(found) != len(expected) or any(size != want for size, want in fixed):
        wanted = ", ".join(map(str, expected))
        raise CheckpointError(f"{file}: tensor {name} has shape {found}, not ({wanted})")


def check_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor of something else than finite numbers, such as what a training that diverged leaves.

    Raises:
        CheckpointError: names file and tensor.
    """
    check_type(file, name, tensor)
    if not tensor.numel():
        return
    # NaN is the smallest and the largest of any values that it is among; 8 bits know no order
    ends = torch.stack((tensor if tensor.itemsize > 1 else tensor.float()).aminmax())
    if not ends.float().isfinite().all():  # as fp32, for that is how it is used
        raise CheckpointError(f"{file}: tensor {name} holds values that are no finite numbers (NaN or infinity)")


def check_type(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse whole numbers, such as weights packed into 8 bits: without their scales they are other weights.

    Raises:
        CheckpointError: names file and tensor.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: tensor {name} has the type {tensor.dtype}, which is none of weights")
