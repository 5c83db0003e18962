"""Writing files so that a crash, Ctrl-C or a full disk leaves the old state or the new, never half of it."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tagi.errors import TagiError


class DiskError(TagiError):
    """A file or folder that could not be written."""


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the place of `target` only when the block ends well.

    Raises:
        DiskError: no space, no permission, or another error of the file system.
    """
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield draft
            draft.chmod(0o755)
            for file in draft.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes files that only their owner reads
            if target.exists():
                _exchange(target, draft)
            else:
                os.replace(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_replaceable(target: Path, mark: str, kind: str) -> None:
    """Refuse to write a folder over anything but nothing, an empty folder, or one of its kind, which holds `mark`.

    Raises:
        DiskError: something else is there.
    """
    if target.exists() and not (target / mark).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise DiskError(f"{target}: exists and is no {kind}; choose another folder")


def _exchange(target: Path, draft: Path) -> None:
    """Put `draft` in the place of `target` and remove the old folder; after an error the old one is back."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.replace(target, aside / target.name)
        os.replace(draft, target)
    except BaseException:
        if not target.exists():
            os.replace(aside / target.name, target)
        shutil.rmtree(aside)
        raise
    shutil.rmtree(aside)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        DiskError: see `atomic_folder`.
    """
    with atomic_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write; it takes the place of `target` only when the block ends well.

    Raises:
        DiskError: see `atomic_folder`.
    """
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            draft.chmod(0o644)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


def check_writable(target: Path) -> None:
    """Try, before long work, whether a file can be written there; leaves nothing but its folder.

    Raises:
        DiskError: see `atomic_folder`; or a folder lies there.
    """
    with explained(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=target.parent):
            pass


def check_folder(target: Path) -> None:
    """Refuse, before long work, a folder that cannot be made or written; makes nothing.

    Raises:
        DiskError: a file lies there or above it, or a folder that may not be written.
    """
    with explained(target):
        there = next(place for place in (target, *target.absolute().parents) if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def append_line(target: Path, line: str) -> None:
    """Add one line to a text file.

    Raises:
        DiskError: see `atomic_folder`; the line may then stand there in part.
    """
    with explained(target), target.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def sweep(folder: Path, *patterns: str) -> None:
    """Clear away what killed writers of the targets that match left here: drafts, and old folders put aside.

    Where a killed exchange took the old folder away and had not yet put the new one there, the old one comes back.
    """
    for pattern in patterns:
        for aside in folder.glob(f".{pattern}.old.*"):
            for kept in aside.iterdir():
                if not (folder / kept.name).exists():
                    os.replace(kept, folder / kept.name)
        for left in (*folder.glob(f".{pattern}.*"), *folder.glob(f".{pattern}")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskError(f"{target}: no space left on the disk; nothing was written") from error
        raise DiskError(f"{target}: cannot be written ({error.strerror or error})") from error
    except SafetensorError as error:  # what safetensors makes of the system's errors
        raise DiskError(f"{target}: cannot be written ({error})") from error
