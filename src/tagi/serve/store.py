"""Adapters of many registered tasks, bounded in memory and on disk; whatever is gone is generated again.

An adapter follows from its instruction and the checkpoint, so what must never be lost is only the instruction.
Instructions lie in a database that is synced at every write. Adapters are files that any process may drop and any may
write again: each is named after its own SHA-256, so that a damaged one is noticed and never served, and was last
modified when it was last used.
"""

import hashlib
import json
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tagi.data.types import Demonstration, Instruction
from tagi.errors import CheckpointError, InputError
from tagi.files import DiskError, atomic_file
from tagi.infer import asked
from tagi.infer.engine import Tagi
from tagi.model import adapter as adapters
from tagi.model.adapter import TaskAdapter
from tagi.serve.database import Database

MEMORY_BYTES, DISK_BYTES = 1 << 30, 2 << 30
GENERATED_TOGETHER = 16
"""Adapters that are generated in one batch."""
_KEY = re.compile("[0-9a-f]{32}")
_FILE = re.compile("[0-9a-f]{16}/[0-9a-f]{2}/[0-9a-f]{32}-[0-9a-f]{32}[.]safetensors")
"""The name of an adapter's file below the folder; nothing else is ever read or removed."""


@dataclass(slots=True)
class StoreUse:
    """Where the adapters came from that a store gave out, and what went wrong meanwhile."""

    memory: int = 0
    disk: int = 0
    generated: int = 0
    damaged: int = 0
    """Files that were not what their name says; they were generated again."""
    unwritten: int = 0
    """Adapters that could not be written to disk; they were given out all the same."""


class AdapterStore:
    """Adapters by the key of their instruction, for one checkpoint, in a folder that several processes may share.

    >>> with AdapterStore(tagi, "store") as store:
    ...     key = store.register("Keep only the animals, then reverse the list.")
    ...     adapter = store.get(key)
    """

    def __init__(
        self,
        tagi: Tagi,
        folder: str | Path,
        *,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
        across_machines: bool = False,
    ) -> None:
        """Open a store, or begin one.

        Args:
            memory_bytes: of adapters in this process, at most.
            disk_bytes: of the folder, instructions included; they are kept whatever they need.
            across_machines: whether processes of several machines share the folder, see `Database`.

        Raises:
            InputError: this method has no adapters.
            DiskError: the folder cannot be written, or its database is damaged.
        """
        if not tagi.model.method.adapts:
            raise InputError(f"method {tagi.model.method.name} reads the instruction with every input: no adapter")
        self.tagi, self.folder = tagi, Path(folder)
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.across_machines, self.checkpoint = across_machines, identity(tagi)
        self.use = StoreUse()
        self._held: OrderedDict[str, TaskAdapter] = OrderedDict()
        self.held_bytes = 0
        """Of the adapters in memory."""
        self._lock = threading.RLock()
        self._files = self.folder / self.checkpoint
        table = "instructions (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
        self._instructions = Database(self.folder / "instructions.sqlite3", table, across_machines=across_machines)

    def register(self, instruction: str | Instruction) -> str:
        """Keep an instruction on disk, for good; gives the key of its adapter. Nothing is generated yet."""
        return self.register_all([instruction])[0]

    def register_all(self, instructions: Sequence[str | Instruction]) -> list[str]:
        """Keep many, all or none of them."""
        told = asked.instructions(instructions)
        keys = [key_of(one) for one in told]
        rows = zip(keys, map(_text, told), strict=True)
        self._instructions.write("INSERT OR IGNORE INTO instructions VALUES (?, ?)", rows)
        self._make_room()
        return keys

    def instruction(self, key: str) -> Instruction:
        """What was registered under a key; an `InputError` where nothing was."""
        _check_key(key)
        rows = self._instructions.read("SELECT text FROM instructions WHERE key = ?", key)
        if not rows:
            raise InputError(f"no instruction is registered under {key!r}")
        definition, pairs = json.loads(rows[0][0])
        return Instruction(definition, tuple(Demonstration(*pair) for pair in pairs))

    def keys(self) -> list[str]:
        """Of everything that is registered."""
        return [key for (key,) in self._instructions.read("SELECT key FROM instructions ORDER BY key")]

    def get(self, key: str) -> TaskAdapter:
        """The adapter of a registered instruction: from memory, from disk, or generated."""
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str]) -> list[TaskAdapter]:
        """The adapters of several registered instructions; those that are nowhere are generated together."""
        for key in keys:
            _check_key(key)
        with self._lock:
            found = {key: one for key in dict.fromkeys(keys) if (one := self._find(key)) is not None}
            found |= self._generate([key for key in dict.fromkeys(keys) if key not in found])
            return [found[key] for key in keys]

    def forget(self, key: str) -> None:
        """Drop an adapter from memory; on disk it stays."""
        _check_key(key)
        with self._lock:
            if (adapter := self._held.pop(key, None)) is not None:
                self.held_bytes -= adapter.nbytes

    def close(self) -> None:
        """Close the database."""
        self._instructions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- finding -----------------------------------------------------------------------------------------

    def _find(self, key: str) -> TaskAdapter | None:
        if key in self._held:
            self._held.move_to_end(key)
            self.use.memory += 1
            return self._held[key]
        adapter = self._read(key)
        if adapter is not None:
            self.use.disk += 1
            self._hold(key, adapter)
        return adapter

    def _read(self, key: str) -> TaskAdapter | None:
        """From disk, if a whole file of it is there; what is left of another is removed."""
        for path in self._files.glob(f"{key[:2]}/{key}-*.safetensors"):
            with suppress(OSError):  # the order of dropping is not worth an answer
                os.utime(path)
            try:
                data = path.read_bytes()
                if _digest(data) == path.stem.rpartition("-")[2]:
                    return adapters.from_bytes(data, path).to(self.tagi.device)
            except FileNotFoundError:  # another process dropped it
                continue
            except (OSError, CheckpointError):
                pass
            self.use.damaged += 1
            path.unlink(missing_ok=True)
        return None

    def _generate(self, keys: Sequence[str]) -> dict[str, TaskAdapter]:
        told = {key: self.instruction(key) for key in keys}
        order = sorted(told, key=lambda key: len(told[key].definition))
        made: dict[str, TaskAdapter] = {}
        for start in range(0, len(order), GENERATED_TOGETHER):
            chosen = order[start : start + GENERATED_TOGETHER]
            each = adapters.unstack(self.tagi.adapt_all([told[key] for key in chosen]))
            for key, adapter in zip(chosen, each, strict=True):
                made[key] = adapter
                self.use.generated += 1
                self._hold(key, adapter)
                self._write(key, adapter)
        return made

    # --- keeping -----------------------------------------------------------------------------------------

    def _hold(self, key: str, adapter: TaskAdapter) -> None:
        """Keep it in memory, and drop what was longest unused."""
        if adapter.nbytes > self.memory_bytes:
            return
        self._held[key] = adapter
        self.held_bytes += adapter.nbytes
        while self.held_bytes > self.memory_bytes:
            self.held_bytes -= self._held.popitem(last=False)[1].nbytes

    def _write(self, key: str, adapter: TaskAdapter) -> None:
        data = adapters.to_bytes(adapter)
        if len(data) > self._room():
            return
        self._make_room(len(data))
        target = self._files / key[:2] / f"{key}-{_digest(data)}.safetensors"
        try:
            with atomic_file(target) as draft:
                draft.write_bytes(data)
        except DiskError as error:
            if not self.use.unwritten:
                warnings.warn(f"{error}; adapters are given out without being kept", stacklevel=2)
            self.use.unwritten += 1
            return
        for other in target.parent.glob(f"{key}-*"):  # the same adapter, generated in another batch
            if other != target:
                other.unlink(missing_ok=True)

    def _room(self) -> int:
        """Bytes that adapters may have on disk, beside the database and what is not yet moved into it."""
        return self.disk_bytes - sum(file.stat().st_size for file in self.folder.glob("*.sqlite3*"))

    def _on_disk(self) -> list[tuple[float, int, Path]]:
        """When each adapter's file was used, its bytes and its path; the longest unused first."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*/*.safetensors"):
            if _FILE.fullmatch(path.relative_to(self.folder).as_posix()):
                with suppress(FileNotFoundError):  # another process dropped it
                    found.append(((stat := path.stat()).st_mtime, stat.st_size, path))
        return sorted(found)

    def _make_room(self, needed: int = 0) -> None:
        """Drop the files that were longest unused until the rest, and so many bytes more, have room."""
        files, room = self._on_disk(), self._room()
        total = needed + sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= room:
                return
            path.unlink(missing_ok=True)
            total -= size


def identity(tagi: Tagi) -> str:
    """Hash of everything that an adapter depends on besides its instruction: tensors, method and prompt."""
    said = json.dumps([tagi.fingerprint(), tagi.config.method, tagi.config.prompt.model_dump()], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def key_of(instruction: Instruction) -> str:
    """Hash of an instruction with its demonstrations."""
    return hashlib.sha256(_text(instruction).encode()).hexdigest()[:32]


def _check_key(key: str) -> None:
    """Keys become names of files: whatever `key_of` cannot give is an `InputError`."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InputError(f"{key!r} is no key of an instruction: keys are 32 hexadecimal digits")


def _text(instruction: Instruction) -> str:
    pairs = [[one.input, one.output] for one in instruction.demonstrations]
    return json.dumps([instruction.definition, pairs], ensure_ascii=False)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
