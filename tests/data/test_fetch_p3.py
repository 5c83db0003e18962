"""P3's rows through `datasets`, from copies on this machine that are laid out as the hub's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cli_runs import Run, mistake
from tagi.data import fetch as fetching
from tagi.data import fetch_p3
from tagi.data.fetch_p3 import HELD_OUT, fetch_held_out_rows, fetch_training_rows
from tagi.data.sources.p3_files import EVALUATION, HeldOut, P3Dataset
from tagi.errors import DataError

TEMPLATES = """dataset: ag_news
templates:
  4f08e9d4-bcff-4bc0-9902-87c497625d17: !Template
    answer_choices: null
    id: 4f08e9d4-bcff-4bc0-9902-87c497625d17
    jinja: "{{text}} What is it about? ||| {{label}}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: []
      original_task: true
    name: about, what?
    reference: ''
"""
NAME = "ag_news_about_what_"
ROWS = [
    {"inputs": [1], "inputs_pretokenized": f"Text {i} What is it about?", "targets_pretokenized": f"é{i}"}
    for i in range(30)
]


def repository(folder: Path, configs: Mapping[str, Sequence[Mapping[str, Any]]], split: str = "train") -> Path:
    """Parquet files by configuration, and the card that tells of them."""
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}.parquet\n"
        for name in configs
    )
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for name, rows in configs.items():
        (folder / name).mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / name / f"{split}.parquet")
    return folder


@pytest.fixture
def p3(tmp_path: Path) -> Path:
    """A folder that has its templates already."""
    file = tmp_path / "p3/templates/ag_news/templates.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TEMPLATES)
    return tmp_path / "p3"


@pytest.fixture
def hub(tmp_path: Path) -> str:
    """A template of ours, and one of a data set that T0 does not train on."""
    return str(repository(tmp_path / "hub", {NAME: ROWS, "imaginary_what_is_it": ROWS}))


def test_rows_of_a_split_become_tasks(p3: Path, hub: str) -> None:
    files, missing = fetch_training_rows(p3, repository=hub, split="10", rows=12)
    assert [path.name for path in files] == [f"{NAME}.jsonl.gz"]
    assert "dream" in missing and "ag_news" not in missing
    dataset = P3Dataset(p3, "10")
    task = dataset.train_tasks(dataset.train_sets()[0])[0]
    published = {(row["inputs_pretokenized"], (row["targets_pretokenized"],)) for row in ROWS}
    drawn = [(one.input, one.targets) for one in task.examples]
    assert len(set(drawn)) == 12 and set(drawn) <= published
    assert drawn != sorted(drawn, key=lambda one: int(one[1][0][1:])), "they are drawn at random"


def test_a_second_download_gives_the_same_and_opens_nothing(
    p3: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_training_rows(p3, repository=hub, rows=12)[0][0]
    written = first.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(fetch_p3.datasets, "load_dataset", lambda *a, **k: pytest.fail("opened again"))
        fetch_training_rows(p3, repository=hub, rows=12)
    first.unlink()
    assert fetch_training_rows(p3, repository=hub, rows=12)[0][0].read_bytes() == written
    first.write_bytes(b"changed")
    with pytest.raises(DataError, match="has changed since it was downloaded"):
        fetch_training_rows(p3, repository=hub, rows=12)


def test_a_download_that_breaks_leaves_no_half_file(p3: Path, tmp_path: Path) -> None:
    damaged = repository(tmp_path / "damaged", {NAME: ROWS})
    file = damaged / NAME / "train.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="damaged: cannot be read"):
        fetch_training_rows(p3, repository=str(damaged))
    assert not list((p3 / "train").iterdir())


def test_held_out_rows_are_what_is_published(p3: Path, tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "label": i % 3} for i in range(5)]
    source = HeldOut("super_glue/cb", (0, 1, 2), str(repository(tmp_path / "cb", {"cb": rows}, "validation")), "cb")
    found = fetch_held_out_rows(p3, {"super_glue_cb": source})
    assert [json.loads(line) for line in found[0].read_text().splitlines()] == rows
    assert P3Dataset(p3).eval_names() == ["super_glue_cb"]


def test_every_held_out_task_has_a_source_but_story_cloze() -> None:
    assert set(EVALUATION) - set(HELD_OUT) == {"story_cloze"}


def test_what_cannot_be_reached_or_has_nothing(p3: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder, and no data set"):
        fetch_training_rows(p3, repository=str(tmp_path / "nowhere"))
    other = str(repository(tmp_path / "other", {"imaginary_what_is_it": ROWS}))
    with pytest.raises(DataError, match="has no template of split 36"):
        fetch_training_rows(p3, repository=other)
    fields = str(repository(tmp_path / "fields", {NAME: [{"inputs_pretokenized": "a"}]}))
    with pytest.raises(DataError, match="targets_pretokenized"):
        fetch_training_rows(p3, repository=fields)


def test_from_the_command_line(p3: Path, hub: str, tagi: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetching, "P3", ())
    asked = ("data", "fetch", "p3", "-o", p3, "--rows-from", hub, "--rows", 3)
    assert "split 36, up to 3 rows a template" in tagi(*asked, "--dry-run").out
    mistake(tagi(*asked, "--split", "7"), "P3 has no split '7'")
    rows = [{"premise": "a", "hypothesis": "b", "label": 0}]
    source = HeldOut("super_glue/cb", (0, 1, 2), str(repository(tmp_path / "cb", {"cb": rows}, "validation")), "cb")
    monkeypatch.setattr(fetch_p3, "HELD_OUT", {"super_glue_cb": source})
    result = tagi(*asked)
    assert result.code == 0 and "rows of 1 templates" in result.out and "has no template of" in result.err
    assert "rows of 1 held-out tasks" in result.out and "StoryCloze" in result.err
