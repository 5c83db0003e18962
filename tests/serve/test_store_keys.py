"""Keys of the adapter store come from outside: only 32 hexadecimal digits ever become the name of a file."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine import INSTRUCTIONS, make

from tagi import Tagi
from tagi.errors import InputError
from tagi.serve.store import AdapterStore, StoreUse, key_of

KEY = "0123456789abcdef" * 2
HOSTILE = [
    "*", "?" * 32, "[0-9]*", "**/*", "", ".", "..", "../outside/x", "../" * 10 + "x", "/etc/passwd", f"/{KEY}",
    f"{KEY}/", f"{KEY}\n",
    f"\n{KEY}", f" {KEY}", f"{KEY}\0", KEY[:-1], KEY + "0", KEY.upper(), KEY[:-1] + "*", KEY[:-1] + "g",
    "٠١٢٣٤٥٦٧٨٩" + KEY[10:], "０" * 32, KEY[:-1] + "\ud800", None, 7, KEY.encode(), Path(KEY), [KEY],
]  # fmt: skip
ENTRIES: dict[str, Callable[[AdapterStore, Any], object]] = {
    "get": AdapterStore.get,
    "get_all": lambda store, key: store.get_all([store.keys()[0], key]),
    "instruction": AdapterStore.instruction,
    "forget": AdapterStore.forget,
}


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make()


@pytest.fixture(scope="module")
def store(tagi: Tagi, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    """Two tasks, one of them on disk, beside a folder that is none of the store's."""
    folder = tmp_path_factory.mktemp("around")
    (folder / "outside").mkdir()
    (folder / "outside" / "x-1.safetensors").write_bytes(b"mine")
    opened = AdapterStore(tagi, folder / "store", memory_bytes=0)
    opened.get_all(opened.register_all(INSTRUCTIONS[:2]))
    return opened


def files(store: AdapterStore) -> dict[Path, bytes]:
    every = (path for path in store.folder.parent.rglob("*") if path.is_file() and ".sqlite3" not in path.name)
    return {path: path.read_bytes() for path in every}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("key", HOSTILE, ids=repr)
def test_a_hostile_key_is_refused_at_every_entry(key: Any, entry: str, store: AdapterStore) -> None:
    before, use = files(store), replace(store.use)
    with pytest.raises(InputError, match="is no key of an instruction: keys are 32 hexadecimal digits"):
        ENTRIES[entry](store, key)
    assert files(store) == before and store.use == use


@given(key=st.text(max_size=40) | st.text(alphabet="0123456789abcdefABCDEF*?[]./\\\n", min_size=31, max_size=33))
def test_any_hostile_key_is_refused(store: AdapterStore, key: str) -> None:
    """A well-formed one that nobody registered is unknown, all others are no keys; no file is touched."""
    before = files(store)
    with pytest.raises(InputError, match=r"is no key of|no instruction is registered under"):
        store.get(key)
    assert files(store) == before


def test_no_hostile_key_in_a_shared_database_reaches_other_files(tagi: Tagi, tmp_path: Path) -> None:
    """The database lies in a folder that others may write to: what it names is checked as what a caller gives."""
    mine = [tmp_path / "mine.txt", tmp_path / "store" / "my" / "own" / "file-1.safetensors"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with AdapterStore(tagi, tmp_path / "store", memory_bytes=0) as store:
        key = store.register(INSTRUCTIONS[0])
        store.get(key)
        size = sum(file.stat().st_size for file in store.folder.rglob("*") if file.is_file())
    told = sqlite3.connect(tmp_path / "store" / "instructions.sqlite3")
    with told:
        told.execute("INSERT INTO instructions VALUES (?, ?)", ("../../mine", '["x", []]'))
    told.close()
    with AdapterStore(tagi, tmp_path / "store", memory_bytes=0, disk_bytes=size) as store:
        store.register(INSTRUCTIONS[1])
        with pytest.raises(InputError, match="is no key"):
            store.get_all(store.keys())
        store.get(key)
    with AdapterStore(tagi, tmp_path / "store", disk_bytes=0) as store:
        store.register(INSTRUCTIONS[2])
        assert not list(store.folder.rglob(f"{key}-*"))
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_no_hostile_key_comes_from_an_instruction(store: AdapterStore) -> None:
    """The keys that are given out pass, whatever the instruction is."""
    keys = store.register_all(["*", "../x", "Größe"])
    assert len(store.get_all(keys)) == 3 and store.instruction(keys[1]).definition == "../x"
    assert store.use != StoreUse() and key_of(store.instruction(keys[0])) == keys[0]
