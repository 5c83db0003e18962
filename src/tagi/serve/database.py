"""Databases in files that several processes share, and their errors in a person's words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tagi.files import DiskError

WAIT = 60.0
"""Seconds to wait for another process that writes."""


def open_database(path: Path, table: str, *, synced: bool, across_machines: bool = False) -> sqlite3.Connection:
    """A database with one table; `synced` where what is written must survive a loss of power.

    SQLite's write-ahead log needs memory that all its processes share, so that one `across_machines` has none.
    """
    level = "DEFERRED" if synced else None  # None: every statement stands by itself
    opened = sqlite3.connect(path, timeout=WAIT, check_same_thread=False, isolation_level=level)
    logged = synced and not across_machines  # of the other database, a log beside it would grow unseen
    opened.execute(f"PRAGMA journal_mode={'WAL' if logged else 'TRUNCATE'}")
    opened.execute(f"PRAGMA synchronous={'FULL' if synced else 'OFF'}")
    opened.execute(table)
    return opened


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of a database in a person's words.

    Raises:
        DiskError: it cannot be used.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskError(f"{path}: cannot be used ({error}); nothing was written") from error
    except sqlite3.DatabaseError as error:
        raise DiskError(f"{path}: is no database of instructions or is damaged ({error})") from error
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error
