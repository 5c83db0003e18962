"""Files that other programs read: each says the same as the file that it follows."""

import re

import yaml

from blocks import ROOT
from tagi import __version__

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [f"ruff=={one['rev'].removeprefix('v')}" for one in config["repos"]] == re.findall("ruff==.*", CONSTRAINTS)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["version"] == __version__ and f'version = "{__version__}"' in pyproject
    assert [one["family-names"] for one in citation["preferred-citation"]["authors"]][::7] == ["Liao", "Zhao"]


def test_the_workflow_and_the_forms_are_yaml_that_asks_for_what_is_there() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert [file.stem for file in files] == ["bug", "results", "ci"]
    bug, results, workflow = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    for form in (bug, results):
        assert form["name"] and form["description"] and all(one["attributes"]["label"] for one in form["body"])
    assert workflow["jobs"]["test"]["steps"][-1]["run"] == "make test lint"
