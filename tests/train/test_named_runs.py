"""Every named run from its first stage to its last evaluation, by the commands that a user gives, at toy size.

Only three things are small: the steps, the published shapes, and what lies under the published names and in the data's
folders. Precision, topology, teachers, losses and lengths are the run's own.
"""

import math
from pathlib import Path

import pytest

from cli_runs import Run
from tagi.config.shapes import SHAPES
from tagi.repro.runs import P3, RUNS, SNI, named
from toy_paper import SHAPE, write_paper
from training_runs import logged


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the named runs read."""
    folder = tmp_path_factory.mktemp("paper")
    write_paper(folder)
    return folder


QUICK = {"sni-base-def", "sni-xxl-def", "p3-large-t5lm", "p3-base-t0"}
"""One of each kind; the others differ in sizes and lengths and take longer."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_named_runs_finish(name: str, paper: Path, tagi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paper)
    for shape in ("base", "large", "xl", "xxl"):
        monkeypatch.setitem(SHAPES, f"t5-v1_1-{shape}", SHAPE)
    done = tagi("train", "all", "--config", name, "training.steps=2", "--json")
    assert (done.code, done.err.count("error")) == (0, 0), done.err[-1000:]
    assert done.json["checkpoint"] == f"runs/{name}/finetune/final"
    entry = logged(Path(f"runs/{name}/finetune"))[-1]
    terms = {"ce", "kl"} | ({"ins"} if "teachers" in named(name) else set())
    assert terms == entry.keys() & {"ce", "kl", "ins"}
    assert all(math.isfinite(entry[term]) for term in terms)
    source = name.partition("-")[0]
    data = {"sni": SNI, "p3": P3}[source]
    scored = tagi("eval", source, "--data", data, "--checkpoint", done.json["checkpoint"], "--json")
    assert scored.code == 0, scored.err[-1000:]
    assert scored.json["n"] > 0
