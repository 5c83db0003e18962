"""Several processes write one folder while another reads it: one thing or the other, whole, at every read."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import make

from builders import random_lora, small_t5
from tagi import Tagi, files
from tagi.backbones.encoded import EncodedInstruction
from tagi.errors import CheckpointError, TagiError
from tagi.files import DiskError, atomic_folder, read_whole
from tagi.model.adapter import Origin, TaskAdapter
from tagi.model.checkpoint import fingerprint
from tagi.model.peft_files import load_peft, save_peft

Write = Callable[[Path], None]
Read = Callable[[Path], bool]
"""Whether what it found is whole."""


def adapter_writer(number: int) -> Write:
    """Adapters whose text and tensors tell the same number."""
    origin = Origin(checkpoint="abc", method="tagi", definition=f"{number}")
    tokens = 3 + number
    encoded = EncodedInstruction(torch.full((1, tokens, 32), float(number)), torch.ones(1, tokens, dtype=torch.bool))
    lora = random_lora(small_t5(), 1, seed=0)
    return TaskAdapter(lora, encoded, (origin,)).save_pretrained


def read_adapter(folder: Path) -> bool:
    adapter = TaskAdapter.from_pretrained(folder)
    return bool((adapter.instruction.hidden == float(adapter.origins[0].definition)).all())


def peft_writer(number: int) -> Write:
    """LoRAs whose config, tensors and metadata tell the same number: scale 1 or 2, values 1 or 2."""
    t5 = small_t5()
    lora = random_lora(t5, 1, seed=0, scale=float(number + 1))
    lora = {site: replace(f, a=torch.full_like(f.a, number + 1.0)) for site, f in lora.items()}
    return lambda folder: save_peft(lora, t5, "base", folder, "About.", fingerprint=fingerprint(t5))


def read_peft(folder: Path) -> bool:
    t5 = small_t5()
    return all(bool((f.a == f.scale).all()) for f in load_peft(folder, t5, fingerprint(t5)).values())


def checkpoint_writer(number: int) -> Write:
    """Checkpoints whose config, weights and language model belong together, or the fingerprints differ."""
    tagi = make(seed=number, max_input=10 + number)
    return tagi.save_pretrained


def read_checkpoint(folder: Path) -> bool:
    tagi = Tagi.from_pretrained(folder)
    return tagi.fingerprint() == make(seed=tagi.config.prompt.max_input - 10).fingerprint()


KINDS: dict[str, tuple[Callable[[int], Write], Read, float]] = {
    "adapter": (adapter_writer, read_adapter, 0.0),
    "peft": (peft_writer, read_peft, 0.0),
    "checkpoint": (checkpoint_writer, read_checkpoint, 1.0),
}
"""And the seconds that a writer rests: a checkpoint that never stands still for as long as reading takes is said."""
Results = Any


def _write(kind: str, number: int, folder: Path, swap: bool, go: Event, stop: Event, results: "Queue[Results]") -> None:
    torch.set_num_threads(1)
    (begin, _, rest), count = KINDS[kind], 0
    write = begin(number)
    if not swap:
        files._swapped = lambda *_: False
    results.put("ready")
    go.wait()
    try:
        while not stop.is_set():
            write(folder)
            count += 1
            time.sleep(rest)
    except TagiError as error:
        results.put(("writer", count, str(error)))
        return
    results.put(("writer", count, None))


def contended(kind: str, folder: Path, seconds: float, *, swap: bool) -> tuple[int, int]:
    """How often two processes wrote and this one read for so many seconds, all of them whole.

    Args:
        swap: whether writers may exchange folders in a single step, as Linux can.
    """
    context = multiprocessing.get_context("spawn")
    go, stop, results = context.Event(), context.Event(), context.Queue()
    KINDS[kind][0](0)(folder)
    writers = [context.Process(target=_write, args=(kind, n, folder, swap, go, stop, results)) for n in range(2)]
    for writer in writers:
        writer.start()
    assert [results.get(timeout=300) for _ in writers] == ["ready", "ready"]
    go.set()
    reads, read, end = 0, KINDS[kind][1], time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            assert read(folder), "what was read is of two writers"
            reads += 1
    finally:
        stop.set()
        found = [results.get(timeout=300) for _ in writers]
        for writer in writers:
            writer.join()
    assert [error for _, _, error in found] == [None, None]
    assert read(folder) and [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left behind"
    return min(count for _, count, _ in found), reads


@pytest.mark.parametrize(
    "swap", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["in one step", "in two steps"]
)
def test_concurrent_writers_and_a_reader_of_an_adapter(swap: bool, tmp_path: Path) -> None:
    writes, reads = contended("adapter", tmp_path / "a", 2.0, swap=swap)
    assert writes > 0 and reads > 0


@pytest.mark.slow
@pytest.mark.parametrize("swap", [True, False], ids=["in one step", "in two steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_writers_and_a_reader_for_a_minute(kind: str, swap: bool, tmp_path: Path) -> None:
    writes, reads = contended(kind, tmp_path / "a", 60.0, swap=swap)
    assert writes > 10 and reads > 10


@pytest.fixture(params=["in one step", "in two steps"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if request.param == "in two steps":
        monkeypatch.setattr(files, "_swapped", lambda *_: False)
    put(tmp_path / "t", "old")
    yield tmp_path / "t"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def put(folder: Path, text: str) -> None:
    with atomic_folder(folder) as draft:
        for name in ("a", "b"):
            (draft / name).write_text(text)


def test_concurrent_writers_between_two_files_of_a_reader(folder: Path) -> None:
    """The reader begins again and finds both files of one writer."""
    written = iter(["new", "newer"])

    def read() -> str:
        found = (folder / "a").read_text()
        if (text := next(written, None)) is not None:
            put(folder, text)
        return found + (folder / "b").read_text()

    assert read_whole(folder, read) == "newernewer"


def test_concurrent_writers_that_never_rest_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    with pytest.raises(DiskError, match=r"t: was replaced again and again while it was read"):
        read_whole(folder, lambda: put(folder, "new"))


def test_concurrent_writers_do_not_hide_a_reader_s_error(folder: Path) -> None:
    """An error of a folder that stays is raised at once; one that came while it was replaced is tried again."""
    tries = []

    def read() -> str:
        tries.append(1)
        if len(tries) == 1:
            put(folder, "new")
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        read_whole(folder, read)
    assert len(tries) == 2


def test_concurrent_writers_meet_in_the_middle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer takes the place just when ours does: both end well, and one of the two stands there."""
    replace_folder, met = files.os.replace, []

    def replace_after_another(one: Path, other: Path) -> None:
        if not met:
            met.append(1)
            put(folder, "theirs")
        replace_folder(one, other)

    monkeypatch.setattr(files.os, "replace", replace_after_another)
    put(folder, "ours")
    assert met and (folder / "a").read_text() == (folder / "b").read_text() == "ours"
