"""What comes with the package."""

from importlib import resources
from pathlib import Path

from tagi.errors import CheckpointError, DataError

_ASSETS = Path(str(resources.files("tagi"))) / "assets"

DEFAULT = "default"
CHECKPOINTS = (DEFAULT, "lora-alone")
"""Names that stand for a bundled checkpoint wherever a checkpoint is asked for, where no folder has them."""


def default_checkpoint() -> Path:
    """The folder of the bundled checkpoint."""
    folder = _ASSETS / DEFAULT
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: this installation bundles no checkpoint; choose one by --checkpoint")
    return folder


def checkpoint(name: str) -> Path | None:
    """The folder of the bundled checkpoint of that name; None where none has it."""
    return _ASSETS / name if name in CHECKPOINTS and (_ASSETS / name).is_dir() else None


def everyday() -> Path:
    """The folder of the everyday tasks: in an installed package those to score on, in a clone all."""
    clone = _ASSETS.parents[2] / "datasets" / "everyday"
    folder = next((one for one in (_ASSETS / "everyday", clone) if one.is_dir()), None)
    if folder is None:
        raise DataError(
            _ASSETS / "everyday", "", "this installation bundles no everyday tasks; give their folder by --data"
        )
    return folder
