"""Downloading data sets: resumed where they were cut off, whole or not there, and checked.

No publisher of these files states their hashes where a program could read them beforehand. So a file is checked
against the size that the server states and, for archives, the archive's own checksums; its SHA-256 is written to
`SHA256SUMS` at the first download and compared ever after.
"""

import hashlib
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tagi.errors import DataError
from tagi.files import atomic_file, explained, write_text
from tagi.reading import read_lines

SUMS = "SHA256SUMS"
CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without an answer after which a server counts as gone."""
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a data set: where it is published, and where it lies in the folder."""

    url: str
    path: str
    unpack: tuple[tuple[str, str], ...] = ()
    """Of an archive, (folder in it, below its first one; folder here) of everything that is unpacked."""


def fetch(source: Source, folder: Path, report: Report | None = None) -> Path:
    """Download one file, or find it there already; gives its place.

    What was downloaded of it stays as `NAME.part` when the connection breaks, and the next call goes on from there.

    Args:
        report: told the bytes that are there, and of how many (0 where the server does not say).

    Raises:
        DataError: the server refuses or breaks off, the size is wrong, or the file is another one than the first time.
        DiskError: the folder cannot be written, or the disk is full.
    """
    target = folder / source.path
    with explained(target):
        if target.exists():
            verify(folder, source.path)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        _download(source.url, part, report)
        digest = sha256(part)
        if digest != recorded(folder).get(source.path, digest):
            part.unlink()
            raise DataError(target, "", f"{source.url} now gives another file than the first time (SHA-256 {digest})")
        part.rename(target)
        record(folder, source.path)
        return target


def verify(folder: Path, path: str) -> None:
    """Compare a file with its SHA-256 in `SHA256SUMS`; a DataError where it has changed since, or has no entry."""
    known = recorded(folder).get(path)
    if known is None:
        raise DataError(folder / SUMS, path, "has no entry; remove the file to download it again")
    if (found := sha256(folder / path)) != known:
        raise DataError(folder / path, "", f"has changed since it was downloaded (SHA-256 {found}, not {known})")


def unpack(archive: Path, folder: Path, wanted: Sequence[tuple[str, str]]) -> int:
    """Unpack some folders of a zip archive whose content lies in one first folder; gives the number of files.

    Raises:
        DataError: it is no archive, is damaged, names a path outside of itself, or holds nothing of what is wanted.
    """
    try:
        with explained(folder), zipfile.ZipFile(archive) as opened:
            chosen = [(one, to) for one in opened.infolist() if (to := _place(archive, one, wanted)) is not None]
            for one, to in chosen:
                with opened.open(one) as packed, atomic_file(folder / to) as draft, draft.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError) as error:  # the last: encrypted
        raise DataError(archive, "", f"is a damaged archive ({error}); remove it to download it again") from error
    if not chosen:
        raise DataError(archive, "", f"holds no {' or '.join(inside for inside, _ in wanted)}")
    return len(chosen)


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by file, as `SHA256SUMS` has it in the format of `sha256sum`."""
    file = folder / SUMS
    lines = read_lines(file) if file.exists() else ()
    return {path: digest for digest, _, path in (line.partition("  ") for _, line in lines)}


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, report: Report | None) -> None:
    """Bring `part` to the whole of what a server has; what is there stays where the server goes on just behind it."""
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have) as answer:
        stated = answer.headers.get("Content-Range") or ""
        if answer.status == 416 and stated == f"bytes */{have}":
            return
        goes_on = answer.status == 206 and stated.startswith(f"bytes {have}-")
        if goes_on or answer.status not in (206, 416):
            _write(url, answer, part, have if goes_on else 0, report)
            return
    part.unlink(missing_ok=True)  # longer than the whole, or the server goes on elsewhere
    if have:
        _download(url, part, report)
    else:
        raise DataError(url, "", "the server gives another part of the file than the whole that was asked for")


def _open(url: str, have: int) -> HTTPResponse:
    """The answer to a request for all but the first bytes; also of a server that has no such part (416)."""
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:
            return cast(HTTPResponse, error)
        error.close()
        raise DataError(url, "", f"the server answers {error.code} ({error.reason})") from error
    except (OSError, HTTPException) as error:
        raise DataError(url, "", f"cannot be downloaded ({_said(error)})") from error


def _write(url: str, answer: HTTPResponse, part: Path, first: int, report: Report | None) -> None:
    stated = answer.headers.get("Content-Length") or ""
    total = first + int(stated) if stated.isdecimal() else 0  # 0 where the server does not say
    with part.open("ab" if first else "wb") as file:
        while block := _read(url, answer, part):
            file.write(block)
            if report is not None:
                report(file.tell(), total)
        size = file.tell()
    if total and size != total:
        raise DataError(url, "", f"broke off after {size:,} of {total:,} bytes; run again to go on")


def _read(url: str, answer: HTTPResponse, part: Path) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, HTTPException) as error:
        reason = f"broke off ({_said(error)}); what is here stays in {part.name}, run again to go on"
        raise DataError(url, "", reason) from error


def _said(error: Exception) -> str:
    """Why a connection failed, on one line."""
    return " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())


def record(folder: Path, path: str) -> None:
    """Write a file's SHA-256 to `SHA256SUMS`."""
    sums = recorded(folder) | {path: sha256(folder / path)}
    write_text(folder / SUMS, "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))


def _place(archive: Path, member: zipfile.ZipInfo, wanted: Iterable[tuple[str, str]]) -> str | None:
    """Where a member of an archive goes, below the folder; None where it is not wanted."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
        raise DataError(archive, member.filename, "leaves the archive's folder")
    if member.is_dir():
        return None
    below = PurePosixPath(*path.parts[1:])
    for inside, here in wanted:
        if below.is_relative_to(inside):
            return str(PurePosixPath(here) / below.relative_to(inside))
    return None


# --- what is published where ------------------------------------------------------------------------------

SNI = (
    Source(
        "https://github.com/allenai/natural-instructions/archive/refs/tags/v2.6.zip",
        "natural-instructions-2.6.zip",
        (("tasks", "tasks"), ("splits", "splits")),
    ),
)
P3 = (
    Source(
        "https://github.com/bigscience-workshop/promptsource/archive/refs/tags/v0.2.3.zip",
        "promptsource-0.2.3.zip",
        (("promptsource/templates", "templates"),),
    ),
)
C4 = "https://huggingface.co/datasets/allenai/c4/resolve/main/en"
C4_SHARDS = 1024


def c4(shards: int) -> tuple[Source, ...]:
    """The first training shards of C4's English part, and the first of its validation part."""
    names = [f"c4-train.{i:05}-of-{C4_SHARDS:05}.json.gz" for i in range(shards)]
    return tuple(Source(f"{C4}/{name}", name) for name in [*names, "c4-validation.00000-of-00008.json.gz"])
