"""P3's rows from the hub (or any copy that `datasets` opens): training rows by template, raw rows of held-out tasks."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DefunctDatasetError
from pyarrow.lib import ArrowException

from tagi.data.fetch import record, verify
from tagi.data.sources.p3_files import MAX_ROWS, P3Dataset, data_sets
from tagi.errors import DataError
from tagi.files import atomic_file

REPOSITORY = "bigscience/P3"
FIELDS = ("inputs_pretokenized", "targets_pretokenized")
SHUFFLED = 10
"""Rows that are read for each that is kept, at random among them (A.2: 1,000 of a template)."""
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Where the raw rows of a held-out task are published; T0 is scored on validation rows."""

    repository: str
    config: str | None
    split: str = "validation"


HELD_OUT: Mapping[str, HeldOut] = {
    "anli-r1": HeldOut("facebook/anli", None, "dev_r1"),
    "anli-r2": HeldOut("facebook/anli", None, "dev_r2"),
    "anli-r3": HeldOut("facebook/anli", None, "dev_r3"),
    "hellaswag": HeldOut("Rowan/hellaswag", None),
    "super_glue_cb": HeldOut("aps/super_glue", "cb"),
    "super_glue_copa": HeldOut("aps/super_glue", "copa"),
    "super_glue_rte": HeldOut("aps/super_glue", "rte"),
    "super_glue_wic": HeldOut("aps/super_glue", "wic"),
    "super_glue_wsc.fixed": HeldOut("aps/super_glue", "wsc.fixed"),
    "winogrande_winogrande_xl": HeldOut("allenai/winogrande", "winogrande_xl"),
}
"""All but StoryCloze, which may not be redistributed."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is there after a download."""

    files: list[Path]
    missing: list[str]
    """Data sets of the split that the repository has no template of."""


def fetch_training_rows(
    folder: Path,
    *,
    repository: str = REPOSITORY,
    split: str = "36",
    rows: int = MAX_ROWS,
    seed: int = 0,
    report: Report | None = None,
) -> Fetched:
    """Rows of every template of a split, to `train/<data set>_<template>.jsonl.gz`.

    The templates must be in the folder already. Rows are drawn at random from the first `SHUFFLED` times as many. A
    file that is there is checked and kept, so that a broken download goes on with the first that is missing.

    Args:
        report: told the files that are there, and of how many.

    Raises:
        ConfigError: an unknown split.
        DataError: the repository cannot be reached, holds no template of the split, or a file has changed.
        DiskError: the folder cannot be written.
    """
    wanted, resolved = data_sets(split), P3Dataset(folder).by_file_name()
    published = _config_names(repository)
    names = [one for one in published if one in resolved and (wanted is None or resolved[one][0] in wanted)]
    if not names:
        raise DataError(repository, "", f"has no template of split {split}")
    files: list[Path] = []
    for number, name in enumerate(names, start=1):
        drawn = (_kept(repository, name, one) for one in _draw(repository, name, "train", rows, seed))
        files.append(_write(folder, f"train/{name}.jsonl.gz", drawn))
        if report is not None:
            report(number, len(names))
    found = {resolved[name][0] for name in names}
    return Fetched(files, sorted((wanted or found) - found))


def fetch_held_out_rows(folder: Path, sources: Mapping[str, HeldOut], *, report: Report | None = None) -> Fetched:
    """All validation rows of the held-out tasks, as they are published, to `eval/<task>.jsonl`.

    Raises:
        DataError: a repository cannot be reached, or a file has changed.
        DiskError: the folder cannot be written.
    """
    files: list[Path] = []
    for number, (name, source) in enumerate(sources.items(), start=1):
        drawn = _draw(source.repository, source.config, source.split, None, 0)
        files.append(_write(folder, f"eval/{name}.jsonl", drawn))
        if report is not None:
            report(number, len(sources))
    return Fetched(files, [])


def _kept(repository: str, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    if lacking := [field for field in FIELDS if field not in row]:
        raise DataError(repository, name, f"its rows have no {lacking[0]}")
    return {field: row[field] for field in FIELDS}


def _config_names(repository: str) -> list[str]:
    with _reached(repository):
        return sorted(datasets.get_dataset_config_names(repository))


def _draw(repository: str, config: str | None, split: str, rows: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows one at a time, opened when the first is asked for."""
    with _reached(repository):
        opened = datasets.load_dataset(repository, config, split=split, streaming=True)
        if rows is None:
            yield from opened
            return
        yield from islice(opened.shuffle(seed=seed, buffer_size=SHUFFLED * rows), rows)


@contextmanager
def _reached(repository: str) -> Iterator[None]:
    """Whatever goes wrong with a repository is one sentence that names it."""
    try:
        yield
    except (DatasetNotFoundError, DefunctDatasetError, FileNotFoundError, ConnectionError) as error:
        raise DataError(repository, "", "no such folder, and no data set of that name can be reached") from error
    except (ValueError, ArrowException, DatasetGenerationError) as error:
        raise DataError(repository, "", f"cannot be read ({' '.join(str(error).split())})") from error


def _write(folder: Path, path: str, rows: Iterator[Mapping[str, Any]]) -> Path:
    """The rows as JSON lines, whole or not at all, with their SHA-256 on record; a file that is there stays."""
    target = folder / path
    if target.exists():
        verify(folder, path)
        return target
    with atomic_file(target) as draft:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        draft.write_bytes(gzip.compress(text, mtime=0) if target.suffix == ".gz" else text)
    record(folder, path)
    return target
