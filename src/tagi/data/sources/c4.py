"""Plain text in C4's format: JSON lines, packed by gzip or not."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from tagi.data.records import Record, parse_json
from tagi.data.sources.base import Source
from tagi.errors import DataError
from tagi.reading import read_lines

TOKENIZER_DOCUMENTS = 20_000
"""Documents that a tokenizer is trained on, at most."""


class C4(Source):
    """The training documents of a folder, for hypernetwork pretraining; there are no tasks."""

    def documents(self) -> Iterator[str]:
        return islice(documents(self.files()), self.data.max_documents)

    def texts(self) -> Iterator[str]:
        return islice(documents(self.files()), TOKENIZER_DOCUMENTS)

    def files(self) -> list[Path]:
        return list_files(self.folder, "train")


class _Document(Record):
    text: str


def list_files(folder: Path, part: Literal["train", "validation"] | None = None) -> list[Path]:
    """A folder's `*.json.gz` and `*.json` files, sorted; of one part `c4-PART.…`; a DataError where there is none."""
    stem = "*" if part is None else f"c4-{part}.*"
    files = sorted([*folder.glob(f"{stem}.json.gz"), *folder.glob(f"{stem}.json")])
    if not files:
        raise DataError(folder, "", f"holds no {stem}.json.gz or {stem}.json file")
    return files


def documents(files: Iterable[Path]) -> Iterator[str]:
    """The texts of JSON-lines files, one at a time; a DataError where a file or a line cannot be used."""
    for path in files:
        for number, line in read_lines(path):
            yield parse_json(_Document, line, path, f"line {number}").text
