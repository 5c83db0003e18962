"""Mistakes that a user can mend.

The command line prints any `TagiError` as one sentence and exits with code 2; the server answers 4xx.
Everything else is a defect of ours and keeps its traceback.
"""

from pathlib import Path


class TagiError(Exception):
    """Base of every error that one clear sentence can explain to the person who caused it."""


class DataError(TagiError):
    """A data file that cannot be used; names the file, the field and the reason."""

    def __init__(self, path: str | Path, field: str, reason: str) -> None:
        self.path, self.field, self.reason = Path(path), field, reason
        super().__init__(f"{path}: {field}: {reason}" if field else f"{path}: {reason}")


class ConfigError(TagiError):
    """A config file or `key=value` that does not fit the config tree."""


class CheckpointError(TagiError):
    """A folder that is no checkpoint, a half-written one, or one that belongs to another backbone."""


class InputError(TagiError):
    """An instruction or input that cannot be used (empty, too long)."""
