"""PromptSource templates (Bach et al., 2022): read from their published YAML, rendered in a sandbox with limits.

A template's Jinja body is `input ||| target`; its answer choices, where it has any, are separated by `|||` too.
Templates are other people's programs: they see the row and nothing else, and may neither run long nor grow large.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tagi.data.sandbox import Mask, compiled, generate
from tagi.errors import DataError
from tagi.reading import read_text, yaml_value

SEPARATOR = "|||"
_PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Stands for a separator inside a field while a row is rendered; PromptSource's own token."""


@dataclass(frozen=True, slots=True)
class Template:
    """One prompt of a data set."""

    source: Path
    name: str
    jinja: str
    answer_choices: str | None
    original_task: bool
    """Whether it asks for what the data set was made for; T0 evaluates with these."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as a prompt: what is read, what is answered, and what is chosen from."""

    input: str
    target: str
    choices: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Plain values and the two tags of PromptSource, both as mappings."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def read_templates(path: Path) -> list[Template]:
    """Every template of a `templates.yaml`, in the file's order; a DataError where it or one of them is damaged."""
    try:
        content = yaml_value(read_text(path), _Loader)
    except yaml.YAMLError as error:
        raise DataError(path, "", f"is no YAML of PromptSource ({' '.join(str(error).split())})") from error
    entries = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise DataError(path, "templates", "must map ids to templates")
    templates = [_template(path, key, entry) for key, entry in entries.items()]
    if twice := [name for name, count in Counter(one.name for one in templates).items() if count > 1]:
        raise DataError(path, twice[0], "is the name of two templates")
    return templates


def _template(path: Path, key: Any, entry: Any) -> Template:
    if not isinstance(entry, dict):
        raise DataError(path, f"templates.{key}", "must be a !Template")
    for field in ("name", "jinja"):
        if not isinstance(entry.get(field), str):
            raise DataError(path, f"templates.{key}.{field}", "must be a string")
    choices, metadata = entry.get("answer_choices"), entry.get("metadata")
    if choices is not None and not isinstance(choices, str):
        raise DataError(path, f"templates.{key}.answer_choices", "must be a string")
    original = isinstance(metadata, dict) and bool(metadata.get("original_task"))
    return Template(path, entry["name"], entry["jinja"], choices or None, original)


def file_name(data_set: str, template: str) -> str:
    """What P3 calls the rows of a template: every run of other characters than letters, digits and `_` is one `_`."""
    return re.sub(r"\W+", "_", f"{data_set}_{template}")


def render(template: Template, row: Mapping[str, Any], *, seed: str = "") -> Rendered | None:
    """One row through a template; None where the template leaves a part empty, which says that it does not apply.

    Args:
        seed: of the templates that choose at random, so that the same row is always rendered alike.

    Raises:
        DataError: the template raises, reaches for what it must not, or runs or grows past its limits; its choices
            are empty or not all different, or the target is none of them.
    """
    protected = _protect(row)
    choices: list[str] = []
    if template.answer_choices is not None:
        choices = _parts(template, "answer_choices", protected, seed=seed)
        if not all(choices):
            raise _refused(template, "answer_choices", "a choice is empty")
        if len(set(choices)) < len(choices):
            raise _refused(template, "answer_choices", f"two choices are the same in {choices}")
    labels = {"answer_choices": _Labels(_protect(choices))}
    parts = _parts(template, "jinja", protected | labels, seed=seed)
    if len(parts) < 2 or not parts[0] or not parts[1]:
        return None
    if choices and parts[1] not in choices:
        raise _refused(template, "jinja", f"the target {parts[1]!r} is none of the choices {choices}")
    return Rendered(parts[0], parts[1], tuple(choices))


def masked(template: Template) -> str:
    """The template by itself: its own words, with the name of a field in place of every field (`<premise>`).

    This is P3's instruction where a hypernetwork reads "only the template" (§4.3). Every condition on a field holds, so
    the first branch is kept; a loop over a field runs once.

    Raises:
        DataError: the template cannot be rendered without a row.
    """
    choices = _Choices(_parts(template, "answer_choices", {}, masks=True))
    return _parts(template, "jinja", {"answer_choices": choices}, masks=True)[0]


class _Labels(list[str]):
    """Answer choices of a row; the sentence about a label that is outside of them says so."""

    def __getitem__(self, index: Any) -> Any:
        try:
            return list.__getitem__(self, index)
        except (IndexError, TypeError):
            raise ValueError(f"label {index!r} is outside of the {len(self)} choices") from None


class _Choices(list[str]):
    """Answer choices of which nothing but the fields' names may be known: any place in them has a text."""

    def __getitem__(self, index: Any) -> Any:
        known = isinstance(index, int) and -len(self) <= index < len(self)
        return list.__getitem__(self, index) if known else f"<{index if isinstance(index, Mask) else 'choice'}>"


def _parts(
    template: Template,
    field: Literal["jinja", "answer_choices"],
    values: Mapping[str, Any],
    *,
    masks: bool = False,
    seed: str = "",
) -> list[str]:
    """The parts of a rendered field.

    Whatever a template's program raises is the template's fault, and is said in one sentence.
    """
    program = compiled(getattr(template, field) or "", masks=masks)
    if isinstance(program, str):
        raise _refused(template, field, program)
    try:
        text = generate(program, values, seed=seed)
        text.encode()  # a template's own escapes can write half characters
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _refused(template, field, f"cannot be rendered ({said})") from error
    return [part.replace(_PROTECTED, SEPARATOR).strip() for part in text.split(SEPARATOR)]


def _protect(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(SEPARATOR, _PROTECTED)
    if isinstance(value, Mapping):
        return {name: _protect(one) for name, one in value.items()}
    return [_protect(one) for one in value] if isinstance(value, Sequence) else value


def _refused(template: Template, field: str, reason: str) -> DataError:
    return DataError(template.source, f"{template.name}: {field}", reason)
