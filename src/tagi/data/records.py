"""JSON that other people wrote as checked records, or one sentence about what is wrong with it."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tagi.errors import DataError
from tagi.reading import json_value

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


def as_list(value: Any) -> Any:
    """Before validation: one text in place of a list of one."""
    return [value] if isinstance(value, str) else value


def written(text: str) -> str:
    """The validator of a text that must not be empty."""
    if not text.strip():
        raise ValueError("is empty")
    return text


Written = Annotated[str, AfterValidator(written)]


def parse_json(kind: type[R], text: str, path: Path, within: str = "") -> R:
    """One JSON object as a record; `path`, and a place `within` it such as "line 3", are what errors name.

    Raises:
        DataError: the text is not JSON or does not fit `kind`; names the first field that does not.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            json_value(text, path, within)  # says it better, as of half characters
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
        reason = f"is not JSON ({message})" if first["type"] == "json_invalid" else message
        where = ", ".join(part for part in (within, field.lstrip(".")) if part)
        raise DataError(path, where, _REASONS.get(first["type"], reason)) from error
