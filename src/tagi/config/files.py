"""Configs in files: YAML in and YAML out for a run, JSON for what is kept beside weights.

`key=value` overrides address a field by its dotted path (`training.steps=500`).
"""

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tagi.config import Frozen, RunConfig
from tagi.errors import CheckpointError, ConfigError, DataError
from tagi.reading import json_value, read_text, yaml_value

C = TypeVar("C", bound=Frozen)
RUN_FILE = "run.yaml"
"""The config of the run that trained a checkpoint, kept inside it."""


class _Loader(yaml.SafeLoader):
    """YAML as configs need it: a key that stands twice is an error, and there are no dates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_DATE = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {tag: one for tag, one in yaml.SafeLoader.yaml_constructors.items() if tag != _DATE}


def parse(kind: type[C], values: Any, *, source: str) -> C:
    """A config of plain values; a `ConfigError` names `source`, the dotted field and what is nearest an unknown key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(kind, error)}") from error


def read_json(kind: type[C], path: Path, what: str) -> C:
    """The JSON file that makes its folder a `what`; a `CheckpointError` names file and field."""
    if not path.exists():
        raise CheckpointError(f"{path.parent}: is no {what} ({path.name} is missing)")
    try:
        values = json_value(read_text(path), path)
    except DataError as error:
        raise CheckpointError(f"{path}: is damaged or of another version ({error.reason})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: is damaged or of another version (it holds no JSON object)")
    try:
        return parse(kind, values, source=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from YAML and apply `key=value` overrides, whose values are read as YAML too; errors as of `parse`."""
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    values = _read_yaml(text, f"{path}:")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of config keys")
    return _overridden(values, overrides, str(path))


def override(config: RunConfig, overrides: Sequence[str], *, source: str) -> RunConfig:
    """The run with `key=value` overrides applied, as `load` applies them to a file."""
    return _overridden(config.model_dump(mode="json"), overrides, source)


def _overridden(values: dict[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    for one in overrides:
        _assign(values, one)
    return parse(RunConfig, values, source=source)


def dump(config: Frozen) -> str:
    """The config as YAML; `load` gives back an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _assign(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override}: an override is written key=value, for example training.steps=500")
    try:
        override.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{override!r}: is not UTF-8") from error
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"{override}: {parent} holds a value, not further keys")
    values[last] = _read_yaml(text, f"{override}: the value")


def _read_yaml(text: str, source: str) -> Any:
    """Plain values of a YAML text; one whose aliases make more of it than any config is, is refused too."""
    try:
        return yaml_value(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML ({' '.join(str(error).split())})") from error


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])  # a typo explains the rest
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        schema = kind.model_json_schema()
        sections = (schema, *schema.get("$defs", {}).values())
        known = {name for section in sections for name in section.get("properties", ())}
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(known), n=1)
        return f"{where}: unknown key" + (f", did you mean {near[0]}?" if near else "")
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
