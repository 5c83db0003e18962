"""P3's rows from the hub (or any copy that `datasets` opens): training rows by template, raw rows of held-out tasks."""

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DefunctDatasetError
from pyarrow.lib import ArrowException

from tagi.data.fetch import Report, record, verify
from tagi.data.sources.p3_files import EVALUATION, MAX_ROWS, HeldOut, P3Dataset, data_sets
from tagi.errors import DataError
from tagi.files import atomic_file

REPOSITORY = "bigscience/P3"
FIELDS = ("inputs_pretokenized", "targets_pretokenized")
SHUFFLED = 10
"""Rows that are read for each that is kept, at random among them (A.2: 1,000 of a template)."""


HELD_OUT = {name: one for name, one in EVALUATION.items() if one.repository}
"""Where the rows of the held-out tasks are published."""


def fetch_training_rows(
    folder: Path,
    *,
    repository: str = REPOSITORY,
    split: str = "36",
    rows: int = MAX_ROWS,
    report: Report | None = None,
) -> tuple[list[Path], list[str]]:
    """Rows of every template of a split, to `train/<data set>_<template>.jsonl.gz`; the files, and the data sets of the
    split that the repository has no template of.

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
    with _reached(repository):
        published = sorted(datasets.get_dataset_config_names(repository))
    names = [one for one in published if one in resolved and (wanted is None or resolved[one][0] in wanted)]
    if not names:
        raise DataError(repository, "", f"has no template of split {split}")
    files: list[Path] = []
    for number, name in enumerate(names, start=1):
        drawn = (_kept(repository, name, one) for one in _draw(repository, name, "train", rows))
        files.append(_write(folder, f"train/{name}.jsonl.gz", drawn))
        if report is not None:
            report(number, len(names))
    found = {resolved[name][0] for name in names}
    return files, sorted((wanted or found) - found)


def fetch_held_out_rows(folder: Path, sources: Mapping[str, HeldOut], *, report: Report | None = None) -> list[Path]:
    """All validation rows of the held-out tasks, as they are published, to `eval/<task>.jsonl`.

    Raises:
        DataError: a repository cannot be reached, or a file has changed.
        DiskError: the folder cannot be written.
    """
    files: list[Path] = []
    for number, (name, source) in enumerate(sources.items(), start=1):
        drawn = _draw(source.repository, source.config, source.split, None)
        files.append(_write(folder, f"eval/{name}.jsonl", drawn))
        if report is not None:
            report(number, len(sources))
    return files


def _kept(repository: str, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    if lacking := [field for field in FIELDS if field not in row]:
        raise DataError(repository, name, f"its rows have no {lacking[0]}")
    return {field: row[field] for field in FIELDS}


def _draw(repository: str, config: str | None, split: str, rows: int | None) -> Iterator[dict[str, Any]]:
    """Rows one at a time, opened when the first is asked for."""
    with _reached(repository):
        opened = datasets.load_dataset(repository, config, split=split, streaming=True)
        if rows is None:
            yield from opened
            return
        yield from islice(opened.shuffle(seed=0, buffer_size=SHUFFLED * rows), rows)


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
