"""Writing files so that a crash, Ctrl-C or a full disk leaves the old state or the new, never half of it."""

import contextlib
import ctypes
import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from tagi.errors import TagiError

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds for which a folder is read anew, or its place is asked for, while others replace it."""
PAUSE = 0.002
"""Seconds between those tries."""
GAP = 0.05
"""Seconds after which a folder that is not there is no longer taken for one that a writer is just replacing."""


class DiskError(TagiError):
    """A file or folder that could not be written."""


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the place of `target` only when the block ends well.

    Several processes may write to one target: each folder stands there whole until the next takes its place. Of a link
    to a folder, the folder is replaced and the link stays.

    Raises:
        DiskError: no space, no permission, or another error of the file system.
    """
    with explained(target):
        place = Path(os.path.realpath(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            yield draft
            draft.chmod(0o755)
            for file in draft.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes files that only their owner reads
            _take_place(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def read_whole(folder: Path, read: Callable[[], T]) -> T:
    """What `read` finds in a folder that others may replace meanwhile: all of it from one and the same folder.

    Raises:
        DiskError: it was replaced at every try.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = _standing(folder)
        try:
            found = read()
        except TagiError:
            if before is None or _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found
        time.sleep(PAUSE)
    raise DiskError(f"{folder}: was replaced again and again while it was read; try again when its writers are done")


def _standing(folder: Path) -> tuple[int, ...] | None:
    """The identity of a folder, as soon as it stands there: where a writer needs two steps, it is away in between."""
    end = time.monotonic() + GAP
    while (found := _identity(folder)) is None and time.monotonic() < end:
        time.sleep(PAUSE)
    return found


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells a folder from another that takes its place; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def check_replaceable(target: Path, mark: str, kind: str) -> None:
    """Refuse to write a folder over anything but nothing, an empty folder, or one of its kind, which holds `mark`."""
    if not target.exists():
        return

    def check() -> None:
        if target.exists() and not (target / mark).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise DiskError(f"{target}: exists and is no {kind}; choose another folder")

    read_whole(target, check)


def _take_place(draft: Path, target: Path) -> None:
    """Put `draft` in the place of `target`; what stood there is where the draft was, or removed.

    After an error the old folder is back. Another writer may do the same meanwhile: the last one's stays.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.replace(draft, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _swapped(draft, target) or _in_two_steps(draft, target):
            return
        time.sleep(PAUSE * random.random())  # not in step with the others
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _swapped(one: Path, other: Path) -> bool:
    """Whether two folders have changed places in a single step, which Linux can on most file systems."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # another system, or a C library that does not know it
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _in_two_steps(draft: Path, target: Path) -> bool:
    """Move the old folder aside and the new one in; False where another writer was faster."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.replace(target, aside / target.name)
        os.replace(draft, target)
    except BaseException as error:
        if (aside / target.name).exists() and not target.exists():  # nobody has taken its place
            os.replace(aside / target.name, target)
        shutil.rmtree(aside)
        others = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
        if not (isinstance(error, OSError) and error.errno in others and draft.exists()):
            raise
        return False
    shutil.rmtree(aside)
    return True


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all; errors as of `atomic_folder`."""
    with atomic_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write; it takes the place of `target`, or of what `target` is a link to, only when the
    block ends well."""
    with explained(target):
        place = Path(os.path.realpath(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            draft.chmod(0o644)
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)


def check_writable(target: Path) -> None:
    """Try, before long work, whether a file can be written there; leaves nothing but its folder."""
    with explained(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=target.parent):
            pass


def check_folder(target: Path) -> None:
    """Refuse, before long work, a folder that cannot be made or written; makes nothing."""
    with explained(target):
        there = next(place for place in (target, *target.absolute().parents) if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def append_line(target: Path, line: str) -> None:
    """Add one line to a text file; after a `DiskError` it may stand there in part."""
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
