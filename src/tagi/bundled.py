"""What comes with the package."""

from importlib import resources
from pathlib import Path

from tagi.errors import CheckpointError


def default_checkpoint() -> Path:
    """The folder of the bundled checkpoint.

    Raises:
        CheckpointError: this installation has none.
    """
    folder = Path(str(resources.files("tagi"))) / "assets" / "default"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: this installation bundles no checkpoint; choose one by --checkpoint")
    return folder
