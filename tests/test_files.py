"""Writing whole or not at all: after any error the old state is there and nothing else is."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tagi import files
from tagi.files import DiskError, append_line, atomic_folder, check_writable, write_text

ERRORS = [
    pytest.param(KeyboardInterrupt(), KeyboardInterrupt, None, id="Ctrl-C"),
    pytest.param(ValueError("a defect"), ValueError, "^a defect$", id="a defect keeps its type"),
    pytest.param(
        OSError(errno.ENOSPC, "No space left on device"),
        DiskError,
        "t: no space left on the disk; nothing was written$",
        id="disk full",
    ),
    pytest.param(
        PermissionError(errno.EACCES, "Permission denied"), DiskError, r"\(Permission denied\)$", id="forbidden"
    ),
    pytest.param(SafetensorError("os error 28"), DiskError, r"t: cannot be written \(os error 28\)$", id="safetensors"),
]


def state(folder: Path) -> dict[str, str | None]:
    """Every path below a folder; of files the content too."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def test_folder_appears_whole_with_missing_parents(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "t") as draft:
        (draft / "x").write_text("new")
        assert not (tmp_path / "a" / "t").exists()
    assert state(tmp_path) == {"a": None, "a/t": None, "a/t/x": "new"}


def test_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "old").write_text("old")
    with atomic_folder(tmp_path / "t") as draft:
        (draft / "new").write_text("new")
        assert state(tmp_path / "t") == {"old": "old"}
    assert state(tmp_path) == {"t": None, "t/new": "new"}


@pytest.mark.parametrize("way", ["swapped", "in two steps"])
def test_of_a_link_the_folder_is_replaced_and_the_link_stays(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a link to a link, of one that points nowhere yet, and of a link to a file."""
    if way == "in two steps":
        monkeypatch.setattr(files, "_swapped", lambda *_: False)
    real, link, chain = tmp_path / "elsewhere" / "real", tmp_path / "link", tmp_path / "chain"
    real.mkdir(parents=True)
    (real / "old").write_text("old")
    link.symlink_to(real)
    chain.symlink_to("link")
    for number, target in enumerate((link, chain, real)):
        with atomic_folder(target) as draft:
            (draft / f"{number}").write_text("new")
        assert state(real) == {f"{number}": "new"} and link.readlink() == real and chain.is_symlink()
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "later" / "folder")
    with atomic_folder(nowhere) as draft:
        (draft / "x").write_text("new")
    assert nowhere.is_symlink() and state(tmp_path / "later") == {"folder": None, "folder/x": "new"}
    text = tmp_path / "text"
    text.symlink_to(real / "2")
    write_text(text, "through the link")
    assert text.is_symlink() and state(real) == {"2": "through the link"}
    round_about = tmp_path / "round"
    round_about.symlink_to(round_about)
    with pytest.raises(DiskError, match="round: cannot be written"), atomic_folder(round_about):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        "elsewhere", "link", "chain", "nowhere", "later", "text", "round"
    }  # fmt: skip


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "t"):
        pass
    write_text(tmp_path / "x", "text")
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "anew"])
@pytest.mark.parametrize(("error", "expected", "message"), ERRORS)
def test_error_in_the_block_leaves_the_old_folder(
    error: BaseException, expected: type[BaseException], message: str | None, before: bool, tmp_path: Path
) -> None:
    if before:
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "old").write_text("old")
    untouched = state(tmp_path)

    def fail() -> None:
        with atomic_folder(tmp_path / "t") as draft:
            (draft / "half").write_text("half")
            raise error

    with pytest.raises(expected, match=message):
        fail()
    assert state(tmp_path) == untouched


@pytest.mark.parametrize("failing", [1, 2, 3], ids=["at once", "moving the old one away", "moving the new one in"])
@pytest.mark.parametrize(("error", "expected", "message"), ERRORS)
def test_error_while_folders_change_places_leaves_the_old_one(
    error: BaseException,
    expected: type[BaseException],
    message: str | None,
    failing: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "old").write_text("old")
    untouched, calls, replace = state(tmp_path), [0], os.replace

    def replace_or_fail(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise error
        replace(*args)

    monkeypatch.setattr(os, "replace", replace_or_fail)
    monkeypatch.setattr(files, "_swapped", lambda *_: False)  # as where a system cannot do it in a single step
    with pytest.raises(expected, match=message), atomic_folder(tmp_path / "t") as draft:
        (draft / "new").write_text("new")
    assert state(tmp_path) == untouched


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "anew"])
@pytest.mark.parametrize(("error", "expected", "message"), ERRORS)
def test_error_while_writing_leaves_the_old_text(
    error: BaseException,
    expected: type[BaseException],
    message: str | None,
    before: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if before:
        (tmp_path / "t").write_text("old")
    untouched = state(tmp_path)

    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(expected, match=message):
        write_text(tmp_path / "t", "new")
    assert state(tmp_path) == untouched


def test_text_that_cannot_be_encoded_leaves_the_old_text(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "t", "half \ud800")
    assert state(tmp_path) == {"t": "old"}


def test_text_is_utf8_and_replaces_the_old(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "t", "old")
    write_text(tmp_path / "deep" / "t", "Größe\n")
    assert (tmp_path / "deep" / "t").read_bytes() == "Größe\n".encode()
    assert list(state(tmp_path)) == ["deep", "deep/t"]


def write_folder(target: Path) -> None:
    with atomic_folder(target):
        pass


@pytest.mark.parametrize("write", [write_folder, lambda target: write_text(target, "x")], ids=["folder", "text"])
def test_file_in_the_way_is_named(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(DiskError, match=r"file/t: cannot be written \((File exists|Not a directory)\)"):
        write(tmp_path / "file" / "t")
    assert state(tmp_path) == {"file": "I am no folder"}


def test_lines_are_added_and_an_error_is_one_sentence(tmp_path: Path) -> None:
    for line in ("one", "two"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskError, match="folder: cannot be written"):
        append_line(tmp_path / "folder", "three")


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    """Tried before long work: the old file stays, nothing new is left; a folder or a file in the way is named."""
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new" / "file")
    assert state(tmp_path) == {"old": "old", "new": None}
    with pytest.raises(DiskError, match=r"new: cannot be written \(Is a directory\)"):
        check_writable(tmp_path / "new")
    with pytest.raises(DiskError, match=r"old/file: cannot be written"):
        check_writable(tmp_path / "old" / "file")
