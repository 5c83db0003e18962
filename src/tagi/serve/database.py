"""Databases in files that several processes share, and their errors in a person's words."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagi.files import DiskError

WAIT = 60.0
"""Seconds to wait for another process that writes."""


class Database:
    """One table, for any thread; what is written survives a loss of power. Whatever cannot be is a `DiskError`."""

    def __init__(self, path: Path, table: str, *, across_machines: bool) -> None:
        """SQLite's write-ahead log needs memory that all its processes share: one `across_machines` has none."""
        self._path, self._lock = path, threading.Lock()
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
            self._opened.execute(f"PRAGMA journal_mode={'TRUNCATE' if across_machines else 'WAL'}")
            self._opened.execute("PRAGMA synchronous=FULL")
            self._opened.execute(f"CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID")

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""
        with self._lock, _explained(self._path):
            return self._opened.execute(query, values).fetchall()

    def write(self, query: str, rows: Iterable[tuple[object, ...]]) -> int:
        """Change the table once for each row, all or none of them; gives how many changes there were."""
        with self._lock, _explained(self._path), self._opened:
            return self._opened.executemany(query, rows).rowcount

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskError(f"{path}: cannot be used ({error}); nothing was written") from error
    except sqlite3.DatabaseError as error:
        raise DiskError(f"{path}: is no database of instructions or is damaged ({error})") from error
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error
