"""Every task file is read once in a process, whatever asks for it: counted over whole small runs."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_p3 import RTE, write

from cli_runs import CONFIG, Run, write_config
from sni_folders import write_sni
from tagi.data import promptsource
from tagi.data.sources import p3_files, sni_files
from tagi.data.synthetic.micro_splits import splits


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of a data set was read, by its name."""
    count: Counter[str] = Counter()

    def counted(module: Any, function: str) -> None:
        original = getattr(module, function)

        def read(path: Path, *rest: Any) -> Any:
            count[path.name] += 1
            return original(path, *rest)

        monkeypatch.setattr(module, function, read)

    counted(sni_files, "read_text")
    counted(p3_files, "read_lines")
    counted(promptsource, "read_text")
    return count


UNIGRAM = CONFIG["backbone"] | {"tokenizer": "unigram", "shape": CONFIG["backbone"]["shape"] | {"vocab_size": 60}}


@pytest.fixture
def sni_data(tmp_path: Path) -> dict[str, Any]:
    split = splits(0, train_compositions=12, valid=2, test=2)
    write_sni(tmp_path / "sni", [t.task() for t in split.compositions], [t.task() for t in split.test], instances=6)
    return {"source": "sni", "path": str(tmp_path / "sni"), "valid_tasks": 3, "valid_instances": 2}


@pytest.fixture
def p3_data(tmp_path: Path) -> dict[str, Any]:
    words = ["rain", "snow", "sun", "wind", "cloud", "storm", "river", "sea", "hill", "tree", "stone", "road", "house"]
    for data_set in ("imdb", "ag_news"):
        write(tmp_path / f"p3/templates/{data_set}/templates.yaml", RTE)
        rows = [{"inputs_pretokenized": f"the {a} and the {b}", "targets_pretokenized": b} for a, b in pairwise(words)]
        for template in ("say_more", "does_it_follow"):
            write(tmp_path / f"p3/train/{data_set}_{template}.jsonl", "\n".join(map(json.dumps, rows)))
    return {"source": "p3", "path": str(tmp_path / "p3"), "split": "all", "valid_tasks": 1, "valid_instances": 3}


def check(reads: Counter[str], files: int) -> None:
    """Each of so many files once; of templates there is one `templates.yaml` for each of two data sets."""
    found = {name: count for name, count in reads.items() if name not in ("train_tasks.txt", "templates.yaml")}
    assert set(found.values()) == {1} and len(found) == files
    assert reads["templates.yaml"] in (0, 2)


@pytest.mark.parametrize("extra", [{}, {"support": "drawn"}, {"categories": 1}, {"balance": "category"}])
def test_a_run_with_validation_reads_each_task_file_once(
    tagi: Run, reads: Counter[str], sni_data: dict[str, Any], tmp_path: Path, extra: dict[str, Any]
) -> None:
    """Tokenizer, batches, what is remembered for a resume, two validations and the plan in the JSON."""
    file = write_config(tmp_path, data=sni_data | extra, backbone=UNIGRAM)
    assert tagi("train", "finetune", "--config", file, "--json").code == 0
    check(reads, 12)


def test_a_run_on_p3_reads_each_row_file_and_its_templates_once(
    tagi: Run, reads: Counter[str], p3_data: dict[str, Any], tmp_path: Path
) -> None:
    backbone = UNIGRAM | {"shape": UNIGRAM["shape"] | {"vocab_size": 36}}
    file = write_config(tmp_path, data=p3_data, backbone=backbone, prompt=CONFIG["prompt"] | {"style": "t0"})
    assert tagi("train", "finetune", "--config", file).code == 0
    check(reads, 3)  # of the held-out data set, the first template alone


def test_dry_run_and_per_task_loras_read_each_task_file_once(
    tagi: Run, reads: Counter[str], sni_data: dict[str, Any], tmp_path: Path
) -> None:
    file = write_config(tmp_path, data=sni_data, backbone=UNIGRAM)
    assert tagi("train", "finetune", "--config", file, "--dry-run").code == 0
    check(reads, 12)
    reads.clear()
    stage = {"stage": "teachers", "method": "no_instruction", "data": sni_data, "backbone": UNIGRAM}
    assert tagi("train", "teachers", "--config", write_config(tmp_path, **stage)).code == 0
    check(reads, 12)


def test_no_more_of_a_task_is_kept_than_was_asked_for(sni_data: dict[str, Any]) -> None:
    dataset = sni_files.SniDataset(Path(sni_data["path"]))
    views = ((2, 0), (1, None))
    for name, tasks in dataset.by_language(dataset.names("train"), *views)[0].items():
        assert tasks == [dataset.load(name, limit=limit, seed=seed) for limit, seed in views]
