"""PromptSource templates: read safely, rendered as published, and stopped where they misbehave."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagi.data import budget
from tagi.data.budget import Limits
from tagi.data.promptsource import Template, file_name, masked, read_templates, render
from tagi.errors import DataError

ROW = {"premise": "It rains.", "choices": ["dry", "wet"], "label": 1, "meta": {"kind": "cause"}}
SMALL = Limits(steps=2_000, size=5_000, seconds=5.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LIMITS", SMALL)


def template(jinja: str, choices: str | None = None) -> Template:
    return Template(Path("templates.yaml"), "named", jinja, choices, original_task=True)


def body(jinja: str, choices: str | None = None, row: Mapping[str, Any] = ROW) -> tuple[str, str, tuple[str, ...]]:
    made = render(template(jinja, choices), row)
    assert made is not None
    return made.input, made.target, made.choices


# --- rendering --------------------------------------------------------------------------------------------


def test_input_target_and_choices() -> None:
    jinja = "{{ premise }} {% if meta.kind == 'cause' %}Why?{% else %}So?{% endif %} ||| {{ answer_choices[label] }}"
    assert body(jinja, '{{ choices | join(" ||| ") }}') == ("It rains. Why?", "wet", ("dry", "wet"))
    assert body("{{ premise }} ||| {{ choices[0] }}") == ("It rains.", "dry", ())


def test_separators_in_the_data_do_not_split() -> None:
    row = {"text": "a ||| b", "options": ["x ||| y", "z"]}
    found = body("{{ text }} ||| {{ answer_choices[0] }}", "{{ options[0] }} ||| {{ options[1] }}", row)
    assert found == ("a ||| b", "x ||| y", ("x ||| y", "z"))


def test_a_template_that_leaves_a_part_empty_does_not_apply() -> None:
    jinja = "{% if meta.kind == 'effect' %}{{ premise }} ||| {{ answer_choices[label] }}{% endif %}"
    assert render(template(jinja, "a ||| b"), ROW) is None
    assert render(template("{{ premise }}"), ROW) is None


def test_random_choices_depend_on_the_seed_only() -> None:
    one = template("{{ premise }} ||| {{ range(1000) | choice }}")
    drawn = {seed: render(one, ROW, seed=seed) for seed in ("1", "2", "3")}
    assert drawn == {seed: render(one, ROW, seed=seed) for seed in drawn}
    assert len(set(drawn.values())) == 3


def test_promptsource_s_own_filters() -> None:
    assert body("{{ zip([1, 2], choices) | list }} ||| {{ ['a', 'b', 'a'] | most_frequent | join }}")[:2] == (
        "[(1, 'dry'), (2, 'wet')]",
        "a",
    )


def test_file_names_are_the_published_ones() -> None:
    assert file_name("cnn_dailymail/3.0.0", "tldr_summary:") == "cnn_dailymail_3_0_0_tldr_summary_"
    assert file_name("wiki_qa", "Topic Prediction - Answer Only") == "wiki_qa_Topic_Prediction_Answer_Only"


# --- the template by itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "choices", "words"),
    [
        ("{{ premise }} Yes or no? ||| {{ answer_choices[label] }}", "Yes ||| No", "<premise> Yes or no?"),
        ("Is it {{ answer_choices | join(' or ') }}? ||| x", "Yes ||| No", "Is it Yes or No?"),
        ("{{ answer_choices[1] }}, {{ a.b.lower() }} ||| x", "{{ one }} ||| {{ two }}", "<two>, <a>"),
        ("{% if q == 'x' %}Why{% else %}So{% endif %} {{ t[: n + 1] | replace('a', b) }} ||| x", None, "Why <t>"),
        ("{% for o in options %}- {{ o }}\n{% endfor %} ||| x", None, "- <options>"),
        ("{{ answer_choices[3] }} ||| x", '{{ endings | join(" ||| ") }}', "<choice>"),
    ],
)
def test_fields_are_masked(jinja: str, choices: str | None, words: str) -> None:
    assert masked(template(jinja, choices)) == words


# --- what misbehaves --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ 1 / 0 }} ||| x", "division by zero"),
        ("{{ premise.nothing.deeper }} ||| x", "cannot be rendered"),
        ("{{ premise | shout }} ||| x", "is no Jinja"),
        ("{% if %} ||| x", "is no Jinja"),
        ("{% for i in range(900) %}{% for j in range(900) %}{% endfor %}{% endfor %} ||| x", "2,000 turns"),
        ("{% for i in range(100000000) %}{% endfor %} ||| x", "Range too big"),
        ("{% for i in range(1000) recursive %}{{ loop([i]) }}{% endfor %} ||| x", "cannot be rendered"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }} ||| x", "macros are not allowed"),
        ("{% for i in range(999) %}{{ premise }}{{ premise }}{% endfor %} ||| x", "more than 5,000"),
        ("{{ 'a' * 1000000 }} ||| x", "more than 5,000"),
        ("{{ [1] * 1000000 }} ||| x", "more than 5,000"),
        ("{{ 9 ** 9999999 }} ||| x", "more than 5,000"),
        ("{{ '%9999999d' % 1 }} ||| x", "formatting by % is not allowed"),
        ("{{ 'a'.ljust(9999999) }} ||| x", "unsafe"),
        ("{{ '{:9999999}'.format(1) }} ||| x", "unsafe"),
        ("{{ ('a' * 4000).replace('a', 'aaaa') }} ||| x", "more than 5,000"),
        ("{{ 'a'.join(range(4000)) }} ||| x", "more than 5,000"),
        ("{{ ''.__class__.__mro__ }} ||| x", "unsafe"),
        ("{{ premise.__init__.__globals__ }} ||| x", "unsafe"),
        ("{{ choices.append('x') }} ||| x", "unsafe"),
        ("{% include '/etc/passwd' %} ||| x", "cannot be rendered"),
    ],
)
def test_a_template_that_misbehaves_is_named(jinja: str, reason: str) -> None:
    with pytest.raises(DataError) as stopped:
        render(template(jinja), ROW)
    assert str(stopped.value).startswith("templates.yaml: named: jinja: ")
    assert reason in str(stopped.value)


GROWN = {
    "+": "a + a",
    "*": "a * 2",
    "* of a list": "[a] * 2",
    "~": "a ~ a",
    "~ of a list": "[a] ~ a",
    "** of numbers": "9 ** 9999",
    "* of numbers": "(9 ** 1500) * (9 ** 1500)",
    "join": "[a, a] | join",
    "join with a separator": "'xy' | join(a)",
    "a list's text": "[a, a] | string",
    "upper of a list": "[a, a] | upper",
    "trim of a list": "[a, a] | trim",
    "a list in a list": "[[a], [a]] | list",
    "a dictionary": "{'x': a, 'y': a} | string",
    "values": "{'x': a, 'y': a}.values() | list",
    "map": "[a, a] | map('upper') | list",
    "sort": "[a, a] | sort",
    "sum": "[[a], [a]] | map('length') | sum ~ a ~ a",
    "replace": "a | replace('a', 'aa')",
    "zip": "zip([a], [a])",
    "str.join": "a.join('xyz')",
    "str.replace": "a.replace('a', 'aa')",
    "a literal": "[a, a]",
    "a comparison": "[a, a] == [a, a]",
}
"""What makes 5,000 characters or more of `a`, which has 4,000, and prints none of them."""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("expression", GROWN.values(), ids=GROWN)
def test_no_value_grows_past_its_limit_on_the_way(expression: str) -> None:
    grown = "{% set a = 'a' * 4000 %}{% set b = " + expression + " %}1 ||| x"
    with pytest.raises(DataError, match="a value of more than 5,000 characters"):
        render(template(grown), ROW)
    assert render(template(grown.replace("4000", "4").replace("99", "2").replace("1500", "15")), ROW)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "jinja",
    [
        "{% set b %}{{ a }}{{ a }}{% endset %}1 ||| x",
        "{% filter upper %}{{ a }}{{ a }}{% endfilter %} ||| x",
        "{% set n = namespace(b=a) %}{% set n.b = n.b ~ n.b %}1 ||| x",
        "{% block b %}{{ a }}{{ a }}{% endblock %} ||| x",
        "{% for b in [a, a] %}{% endfor %}1 ||| x",
    ],
)
def test_no_captured_text_grows_past_its_limit(jinja: str) -> None:
    with pytest.raises(DataError, match="a value of more than 5,000 characters"):
        render(template("{% set a = 'a' * 4000 %}" + jinja), ROW)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ (1).to_bytes(999999999, 'big') }} ||| x", "unsafe"),
        ("{{ 'a'.encode().ljust(999999999) }} ||| x", "unsafe"),
        ("{{ 1.5 | round(999999999, 'ceil') }} ||| x", "more than 20 digits"),
        ("{{ 9 ** (9 ** 9) }} ||| x", "more than 5,000"),
        ("{% set n = namespace() %}{{ [n] }} ||| x", "a namespace is no value"),
        ("{{ 'a' | center(999999999) }} ||| x", "is no Jinja"),
        ("{{ " + "9" * 5_000 + " }} ||| x", "is no Jinja"),
        ("{{ " + "(" * 5_000 + " }} ||| x", "is no Jinja"),
        ("{% if 1 %}" * 300 + "x" + "{% endif %}" * 300 + " ||| x", "is no Jinja"),
        (r"{{ '\ud83d' }} ||| x", "surrogates not allowed"),
        ("{{ premise | int }} ||| x", "'It rains.' is no whole number"),
        ("{{ choices[label - 2] }} ||| x", "-1 is no place"),
        ("{{ choices[label == 1] }} ||| x", "True is no place"),
        ("{{ choices[label + 1] }} ||| x", "has no element 2"),
        ("{{ premise }} {{ nothing }} ||| x", "'nothing' is undefined"),
        ("{{ premise }} {{ void }} ||| x", "a field that it prints is null"),
        ("{{ [premise, void] | join(' ') }} ||| x", "a field that it prints is null"),
        ("{{ premise ~ void }} ||| x", "a field that it prints is null"),
    ],
)
def test_what_is_not_there_stands_for_nothing(jinja: str, reason: str) -> None:
    """Neither bombs that no operator makes, nor what a row does not have."""
    with pytest.raises(DataError) as stopped:
        render(template(jinja), {**ROW, "void": None})
    assert reason in str(stopped.value)


def test_the_last_of_a_list_may_be_written() -> None:
    assert body("{{ premise.split()[-1] }} ||| {{ choices[label] }}")[:2] == ("rains.", "wet")


def test_a_template_stops_in_the_middle_of_many_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop and no value past the limit, but each of 2,000 filters goes over 500,000 characters."""
    slow = "{% set a = 'ab' * 250000 %}" + "{% set b = a | replace('a', 'c') %}" * 2_000
    monkeypatch.setattr(budget, "LIMITS", Limits(seconds=0.05))
    with pytest.raises(DataError, match=r"runs for more than 0\.05 seconds"):
        render(template(slow + "1 ||| x"), ROW)


def test_a_template_cannot_run_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "{% for i in range(90000) %}{{ i }}{% endfor %} ||| x"
    monkeypatch.setattr(budget, "LIMITS", Limits(seconds=0.0))
    with pytest.raises(DataError, match="runs for more than 0 seconds"):
        render(template(slow), ROW)


@pytest.mark.parametrize(
    ("jinja", "choices", "reason"),
    [
        ("{{ premise }} ||| wet", "dry ||| dry", "two choices are the same"),
        ("{{ premise }} ||| wet", "dry ||| {{ '' }}", "a choice is empty"),
        ("{{ premise }} ||| wet", "{{ '' }}", "a choice is empty"),
        ("{{ premise }} ||| damp", "dry ||| wet", "the target 'damp' is none of the choices"),
    ],
)
def test_choices_that_cannot_be_ranked(jinja: str, choices: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        render(template(jinja, choices), ROW)


# --- files ------------------------------------------------------------------------------------------------

WRITTEN = """
dataset: d
templates:
  1: !Template
    answer_choices: null
    id: 1
    jinja: "{{ a }} ||| {{ b }}"
    metadata: !TemplateMetadata {original_task: true}
    name: one
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(WRITTEN, encoding="utf-8")
    assert read_templates(path) == [Template(path, "one", "{{ a }} ||| {{ b }}", None, original_task=True)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("templates: [", "is no YAML"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        (WRITTEN.replace("!TemplateMetadata", "!Other"), "could not determine a constructor"),
        ("[]", "templates: must map ids to templates"),
        (WRITTEN.replace("!Template\n", "!Template []\n").split("    answer")[0], "is no YAML"),
        (WRITTEN.replace("name: one", "title: one"), "templates.1.name: must be a string"),
        (
            WRITTEN.replace("answer_choices: null", "answer_choices: [a]"),
            "templates.1.answer_choices: must be a string",
        ),
        (WRITTEN + WRITTEN.partition("templates:")[2].replace("1:", "2:", 1), "one: is the name of two templates"),
    ],
)
def test_a_damaged_file_is_named(changed: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(words)) as stopped:
        read_templates(path)
    assert str(stopped.value).startswith(str(path))


def test_published_files_hold_nothing_but_templates(shared_data: Path) -> None:
    """All 556 templates are read, and each says something without a row."""
    files = sorted((shared_data / "p3/templates").rglob("templates.yaml"))
    templates = [one for path in files for one in read_templates(path)]
    assert len(templates) == 556
    assert [one.name for one in templates if not masked(one)] == []
    assert sum(len(yaml.safe_load(re.sub(r"!\w+", "", path.read_text("utf-8")))["templates"]) for path in files) == 556
