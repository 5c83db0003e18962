"""Reading JSON that other people wrote: a checked record, or one sentence about what is wrong with it."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tagi.errors import DataError

_REASONS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "model_type": "must be a JSON object",
    "too_short": "must not be empty",
}


class Record(BaseModel):
    """Base of every record: fields that are not declared are ignored, and no value is converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


R = TypeVar("R", bound=Record)


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(path, "", f"is not UTF-8 (byte {error.start})") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, unpacked if its name ends in `.gz`, one at a time with their numbers from 1.

    Raises:
        DataError: If the file cannot be read or unpacked.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(file, start=1)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(path, "", f"is a damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror})") from error


def parse_json(kind: type[R], text: str | bytes, path: Path, within: str = "") -> R:
    """One JSON object as a record.

    Args:
        path: The file that errors name.
        within: Where in the file the text stands, such as "line 3".

    Raises:
        DataError: If the text is not JSON or does not fit `kind`; names the first field that does not.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
        reason = f"is not JSON ({message})" if first["type"] == "json_invalid" else message
        where = ", ".join(part for part in (within, field.lstrip(".")) if part)
        raise DataError(path, where, _REASONS.get(first["type"], reason)) from error
