"""The adapter store: bounded, shared, and never giving out what is damaged."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_engine import INSTRUCTIONS, make

from tagi import Tagi, files
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError
from tagi.files import DiskError
from tagi.model.adapter import TaskAdapter
from tagi.serve import store as stores
from tagi.serve.store import AdapterStore, StoreUse, key_of

TEXTS = [" ".join("abcdefghijklmnop"[i % 16 : i % 16 + 3]) + f" {'. ' * (i // 16 + 1)}" for i in range(40)]


def equal(ours: TaskAdapter, theirs: TaskAdapter, atol: float = 2e-6) -> None:
    """Worst measured for adapters generated in different batches: 4e-7."""
    for one, other in zip(ours.instruction.tensors, theirs.instruction.tensors, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)
    assert torch.equal(ours.instruction.mask, theirs.instruction.mask) and ours.modules.keys() == theirs.modules.keys()
    for site, factors in theirs.modules.items():
        torch.testing.assert_close(ours.modules[site].a, factors.a, atol=atol, rtol=0)
        torch.testing.assert_close(ours.modules[site].b, factors.b, atol=atol, rtol=0)
        assert ours.modules[site].scale == factors.scale


def written(folder: Path) -> int:
    """Bytes of all that a store has on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make()


@pytest.mark.parametrize(
    ("method", "family"),
    [*((name, "t5") for name in ("tagi", "hint", "hypter", "fusion_only")), ("tagi", "decoder"), ("hint", "decoder")],
)
def test_memory_disk_and_generation_give_the_same(method: str, family: str, tmp_path: Path) -> None:
    model = make(method, family=family)
    told = [Instruction(text, (Demonstration("a", "b"),)) for text in INSTRUCTIONS]
    with AdapterStore(model, tmp_path) as store:
        keys = store.register_all(told)
        first = store.get_all(keys)
        for one, adapter in zip(told, first, strict=True):
            equal(adapter, model.adapt(one))
        assert store.get(keys[1]) is first[1]
        assert store.use == StoreUse(memory=1, generated=3)
    with AdapterStore(model, tmp_path) as again:
        assert len(again.keys()) == 3 and again.instruction(keys[0]) == told[0]
        for ours, theirs in zip(again.get_all(keys), first, strict=True):
            equal(ours, theirs, atol=0.0)
        assert again.use == StoreUse(disk=3)


def test_another_checkpoint_or_prompt_has_adapters_of_its_own(tagi: Tagi, tmp_path: Path) -> None:
    with AdapterStore(tagi, tmp_path) as store:
        key = store.register(INSTRUCTIONS[0])
        store.get(key)
    for other in (make(seed=5), make(max_instruction=3)):
        with AdapterStore(other, tmp_path) as store:
            equal(store.get(key), other.adapt(INSTRUCTIONS[0]))
            assert store.use == StoreUse(generated=1)


def test_both_bounds_hold_and_nothing_is_lost(tagi: Tagi, tmp_path: Path) -> None:
    size = tagi.adapt(TEXTS[0]).nbytes
    bounds = {"memory_bytes": 4 * size, "disk_bytes": 12 * size + 200_000}
    with AdapterStore(tagi, tmp_path, memory_bytes=bounds["memory_bytes"], disk_bytes=bounds["disk_bytes"]) as store:
        keys = store.register_all(TEXTS)
        for key in [*keys, *keys[-2:], *keys]:
            store.get(key)
            assert store.held_bytes <= bounds["memory_bytes"]
            assert written(tmp_path) <= bounds["disk_bytes"]
        assert list(tmp_path.rglob("*.safetensors"))
        assert store.use.memory == 2 and store.use.generated > len(TEXTS)
        equal(store.get(keys[0]), tagi.adapt(TEXTS[0]))


def test_what_was_used_last_stays(tagi: Tagi, tmp_path: Path) -> None:
    with AdapterStore(tagi, tmp_path, memory_bytes=0) as store:
        keys = store.register_all(TEXTS[:6])
        store.get_all(keys)
        store.get(keys[0])
        size = max(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
        store.disk_bytes = written(tmp_path) + size // 2
        store.get(store.register(TEXTS[7]))
        before = store.use.disk
        store.get(keys[0])
        assert store.use.disk == before + 1, "the oldest went, not the one that was used"
        store.get(keys[1])
        assert store.use.generated == 8


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_file_is_generated_again(damage: str, tagi: Tagi, tmp_path: Path) -> None:
    with AdapterStore(tagi, tmp_path, memory_bytes=0) as store:
        key = store.register(INSTRUCTIONS[0])
        good = store.get(key)
        (file,) = tmp_path.rglob("*.safetensors")
        data = bytearray(file.read_bytes())
        data[-5] ^= 64
        broken = {"cut": bytes(data[:100]), "flipped": bytes(data), "emptied": b"", "foreign": b"\x80\x04pickle"}
        file.write_bytes(broken[damage])
        equal(store.get(key), good, atol=0.0)
        assert store.use == StoreUse(generated=2, damaged=1)
        equal(store.get(key), good, atol=0.0)
        assert store.use.disk == 1


def test_a_damaged_database_of_instructions_is_named(tagi: Tagi, tmp_path: Path) -> None:
    (tmp_path / "instructions.sqlite3").write_bytes(b"no database" * 500)
    with pytest.raises(DiskError, match=r"instructions|damaged"):
        AdapterStore(tagi, tmp_path)


def test_a_full_disk_costs_no_answer(tagi: Tagi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(target: Path) -> Iterator[Path]:
        with files.explained(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield target

    monkeypatch.setattr(stores, "atomic_file", full)
    with AdapterStore(tagi, tmp_path) as store:
        keys = store.register_all(TEXTS[:3])
        with pytest.warns(UserWarning, match="no space left"):
            found = store.get_all(keys)
        equal(found[2], tagi.adapt(TEXTS[2]))
        assert store.use == StoreUse(generated=3, unwritten=3)


def test_an_instruction_that_cannot_be_written_is_not_registered(tagi: Tagi, tmp_path: Path) -> None:
    with AdapterStore(tagi, tmp_path) as store:
        kept = store.register(TEXTS[0])
        store._instructions.read("PRAGMA max_page_count = 1")  # what a full disk looks like to it
        long = [Instruction("a b c " * 5000), Instruction("d")]
        with pytest.raises(DiskError, match="full"):
            store.register_all(long)
        assert store.keys() == [kept] and store.get(kept)
        with pytest.raises(InputError, match="no instruction is registered under"):
            store.get(key_of(long[1]))


def test_folders_and_methods_that_cannot_be(tagi: Tagi, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        AdapterStore(tagi, tmp_path / "file")
    with pytest.raises(InputError, match="no adapter"):
        AdapterStore(make("metatrain"), tmp_path)
    with AdapterStore(tagi, tmp_path / "store") as store, pytest.raises(InputError, match="instruction 2 is empty"):
        store.register_all(["a", " "])


def _work(folder: Path, seed: int, bound: int) -> None:
    torch.set_num_threads(1)
    model = make()
    with AdapterStore(model, folder, memory_bytes=0, disk_bytes=bound) as store:
        for i in range(60):
            text = TEXTS[(i * (seed + 2)) % len(TEXTS)]
            equal(store.get(store.register(text)), model.adapt(text))
        assert store.use.damaged == 0
    os._exit(0)


def _hammer(folder: Path) -> None:
    torch.set_num_threads(1)
    model = make()
    with AdapterStore(model, folder, memory_bytes=0) as store:
        for text in TEXTS * 100:
            store.get(store.register(text))


@pytest.mark.slow
def test_several_processes_share_a_folder(tagi: Tagi, tmp_path: Path) -> None:
    """Each generates, reads, and drops what the others wrote."""
    bound = 8 * tagi.adapt(TEXTS[0]).nbytes + 200_000
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path, seed, bound)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with AdapterStore(tagi, tmp_path) as store:
        assert len(store.keys()) == len(TEXTS)


def test_a_kill_while_writing_leaves_whole_adapters(tagi: Tagi, tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_hammer, args=(tmp_path,))
    worker.start()
    while len(list(tmp_path.rglob("*.safetensors"))) < 7:
        assert worker.is_alive()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with AdapterStore(tagi, tmp_path) as store:
        keys = store.keys()
        for key in keys:
            equal(store.get(key), tagi.adapt(store.instruction(key)))
        assert len(keys) >= 7 and store.use.damaged == 0 and store.use.disk >= 6
