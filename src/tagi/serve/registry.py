"""Tasks by name: what a caller names, and what the service knows of it. Kept in a database beside the adapters."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tagi.data.types import Instruction
from tagi.errors import InputError
from tagi.infer import asked
from tagi.serve.database import Database
from tagi.serve.store import AdapterStore, key_of

_TABLE = "tasks (name TEXT PRIMARY KEY, key TEXT, choices TEXT, created REAL)"
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_EXAMPLES = 8
"""That a task's instruction may bring along; all of them are shown."""
_WORDS = 4
"""Words of an instruction that a name is made of where none is given."""


class NotFoundError(InputError):
    """No task has that name."""


class ConflictError(InputError):
    """Another task has that name."""


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A registered task."""

    name: str
    key: str
    """Of its adapter in the store."""
    choices: tuple[str, ...]
    """The answers that it chooses from; empty where it writes its own."""
    created: float
    """Seconds since 1970."""


class TaskRegistry:
    """The names of tasks, for one adapter store; any number of processes may share it.

    What `add` has given back is on disk: neither a killed process nor a lost adapter loses a task.
    """

    def __init__(self, store: AdapterStore) -> None:
        self.store = store
        self._tasks = Database(store.folder / "tasks.sqlite3", _TABLE, across_machines=store.across_machines)

    def add(
        self, instruction: Instruction, *, name: str | None = None, choices: Sequence[str] = ()
    ) -> tuple[NamedTask, bool]:
        """Register a task, on disk or not at all; gives it, and whether it is new. By default a name is made of the
        instruction's first words; where another task has it, that is a `ConflictError`."""
        wanted = made_name(instruction, choices) if name is None else name
        if not _NAME.fullmatch(wanted):  # it can stand in an address and be that of a file
            raise InputError(
                "name: 1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit"
            )
        chosen = tuple(asked.choices([list(choices)], 1)[0]) if choices else ()
        task = NamedTask(wanted, self.store.register(instruction), chosen, time.time())
        row = (task.name, task.key, json.dumps(task.choices, ensure_ascii=False), task.created)
        new = self._tasks.write("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?)", [row]) == 1
        found = self.get(wanted)
        if (found.key, found.choices) != (task.key, task.choices):
            raise ConflictError(f"name: {wanted} is another task already; delete it first or choose another name")
        return found, new

    def get(self, name: str) -> NamedTask:
        """The task of a name, or `NotFoundError`."""
        rows = self._tasks.read("SELECT * FROM tasks WHERE name = ?", name)
        if not rows:
            raise NotFoundError(f"no task is named {name[:64]!r}; POST /v1/tasks registers one")
        return _task(*rows[0])

    def all(self) -> list[NamedTask]:
        """Every task, by name."""
        return [_task(*row) for row in self._tasks.read("SELECT * FROM tasks ORDER BY name")]

    def remove(self, name: str) -> None:
        """Forget a name, or `NotFoundError`; others may have the same instruction."""
        if not self._tasks.write("DELETE FROM tasks WHERE name = ?", [(name,)]):
            raise NotFoundError(f"no task is named {name[:64]!r}")

    def close(self) -> None:
        """Close the database."""
        self._tasks.close()


def made_name(instruction: Instruction, choices: Sequence[str] = ()) -> str:
    """The first words of an instruction, and a part of its hash and its choices', so that no two tasks share it."""
    words = re.findall("[a-z0-9]+", instruction.definition.lower())[:_WORDS]
    told = Instruction("\0".join((instruction.definition, *choices)), instruction.demonstrations)
    return "-".join([*(word[:12] for word in words), key_of(told)[:8]])


def _task(name: str, key: str, choices: str, created: float) -> NamedTask:
    return NamedTask(name, key, tuple(json.loads(choices)), created)
