"""P3: rows, templates, splits and held-out tasks, on small folders and on the published files."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from jinja2 import nodes

from cli_runs import Run, mistake
from tagi.data.mixture import demonstrated
from tagi.data.sandbox import environment
from tagi.data.sources import p3_files
from tagi.data.sources.p3_files import EVALUATION, P3Dataset, TrainSet, data_sets
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.errors import ConfigError, DataError

RTE = """
templates:
  1: !Template
    answer_choices: "Yes ||| No"
    jinja: "{{ premise }} So {{ hypothesis }}? ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata {original_task: true}
    name: does it follow
  2: !Template
    answer_choices: null
    jinja: "{{ premise }} ||| {{ hypothesis }}"
    metadata: !TemplateMetadata {original_task: false}
    name: say more
"""
TEMPLATES, ROW_FILE = "templates/super_glue/rte/templates.yaml", "train/super_glue_rte_say_more.jsonl"
ROWS = [
    {"premise": "It rains.", "hypothesis": "it is wet", "label": 0},
    {"premise": "a", "hypothesis": "b", "label": 1},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One data set with a training file for one of its two templates, and as a held-out task."""
    write(tmp_path / TEMPLATES, RTE)
    rows = [{"inputs_pretokenized": f" in {i}\n", "targets_pretokenized": f" out {i} "} for i in range(5)]
    lines = [*map(json.dumps, rows), "", json.dumps({"inputs_pretokenized": "x", "targets_pretokenized": " "})]
    (tmp_path / "train").mkdir()
    with gzip.open(tmp_path / "train/super_glue_rte_say_more.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    write(tmp_path / "eval/super_glue_rte.jsonl", "\n".join(map(json.dumps, ROWS)))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_training_rows_and_their_template(folder: Path) -> None:
    dataset = P3Dataset(folder, "all")
    (one,) = dataset.train_sets()
    assert (one.name, one.data_set, one.template.name) == ("super_glue_rte_say_more", "super_glue/rte", "say more")
    (task,) = dataset.train_tasks(one)
    assert task == Task(
        "super_glue_rte_say_more",
        Instruction("<premise>"),
        ("super_glue/rte",),
        [Example(f"{i + 1}", f"in {i}", (f"out {i}",)) for i in range(5)],
    )
    assert [x.id for x in dataset.train_tasks(one, limit=2)[0].examples] == ["1", "2"]
    drawn = [tuple(x.id for x in dataset.train_tasks(one, limit=3, seed=seed)[0].examples) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_with_full_every_row_is_a_task_whose_instruction_is_its_prompt(folder: Path) -> None:
    dataset = P3Dataset(folder, "all", "full")
    tasks = dataset.train_tasks(dataset.train_sets()[0])
    assert [task.instruction.definition for task in tasks] == [f"in {i}" for i in range(5)]
    assert [len(task.examples) for task in tasks] == [1] * 5
    assert {task.name for task in dataset.eval_tasks("super_glue_rte")} == {"super_glue_rte/does it follow"}


def test_a_held_out_task_has_the_prompts_that_ask_for_it(folder: Path) -> None:
    (task,) = P3Dataset(folder).eval_tasks("super_glue_rte")
    assert task.name == "super_glue_rte/does it follow"
    assert task.categories == ("super_glue_rte",)
    assert task.instruction == Instruction("<premise> So <hypothesis>?")
    choices = ("Yes", "No")
    assert task.examples == [
        Example("1", "It rains. So it is wet?", ("Yes",), choices),
        Example("2", "a So b?", ("No",), choices),
    ]
    assert P3Dataset(folder).eval_names() == ["super_glue_rte"]


def test_demonstrations_are_rows_of_the_task_that_are_then_not_asked(folder: Path) -> None:
    (task,) = P3Dataset(folder, "all").train_tasks(P3Dataset(folder, "all").train_sets()[0])
    showing = demonstrated([task], 2)
    shown = showing.task(0, 0)
    asked = [one.input for one in shown.examples]
    assert len(shown.instruction.demonstrations) == 2
    assert sorted([*asked, *(one.input for one in shown.instruction.demonstrations)]) == [f"in {i}" for i in range(5)]
    assert all(isinstance(one, Demonstration) for one in shown.instruction.demonstrations)
    assert shown == showing.task(0, 0) != showing.task(0, 3)
    assert len(demonstrated([task], 5).task(0, 0).instruction.demonstrations) == 4


@pytest.fixture
def held_out(tmp_path: Path) -> P3Dataset:
    """A held-out task of twelve rows under two prompts; the second does not apply to every third row."""
    second = """
  3: !Template
    answer_choices: "Yes ||| No"
    jinja: "{% if premise != 'none' %}{{ hypothesis }}, so? ||| {{ answer_choices[label] }}{% endif %}"
    metadata: !TemplateMetadata {original_task: true}
    name: so
"""
    write(tmp_path / TEMPLATES, RTE.rstrip("\n") + second)
    rows = [{"premise": f"p{i}" if i % 3 else "none", "hypothesis": f"h{i}", "label": i % 2} for i in range(12)]
    write(tmp_path / "eval/super_glue_rte.jsonl", "\n".join(map(json.dumps, rows)))
    return P3Dataset(tmp_path)


def row_of(text: str) -> int:
    """The number of the row that a rendered input is made of."""
    return int(re.findall(r"h(\d+)", text)[0])


@pytest.mark.parametrize("limit", [None, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demonstrations_of_held_out_tasks_are_rows_that_no_prompt_scores(
    held_out: P3Dataset, limit: int | None, seed: int
) -> None:
    tasks = held_out.eval_tasks("super_glue_rte", limit=limit, shots=2, seed=seed)
    shown = [{row_of(one.input) for one in task.instruction.demonstrations} for task in tasks]
    scored = [{row_of(one.input) for one in task.examples} for task in tasks]
    assert [len(rows) for rows in shown] == [2, 2] and len(tasks) == 2
    assert not set.union(*shown) & set.union(*scored)
    assert all(one.output in ("Yes", "No") for task in tasks for one in task.instruction.demonstrations)
    without = held_out.eval_tasks("super_glue_rte", limit=limit)
    if limit is None:
        kept = set(range(12)) - set.union(*shown)
        assert scored == [kept, {row for row in kept if row % 3}], "all other rows are scored, under both prompts alike"
    else:
        assert [task.examples for task in tasks] == [task.examples for task in without], "the same as without any"
    assert tasks == held_out.eval_tasks("super_glue_rte", limit=limit, shots=2, seed=seed)


def test_demonstrations_of_held_out_tasks_depend_on_the_seed(held_out: P3Dataset) -> None:
    drawn = {
        held_out.eval_tasks("super_glue_rte", shots=2, seed=seed)[0].instruction.demonstrations for seed in range(5)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize(("limit", "shots"), [(None, 12), (None, 9), (6, 7), (10, 3), (12, 1), (40, 1)])
def test_too_few_rows_for_demonstrations_are_one_sentence(held_out: P3Dataset, limit: int | None, shots: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"demonstrations: {shots} are asked for, .* rows of .*rte.jsonl too few are left"
    ):
        held_out.eval_tasks("super_glue_rte", limit=limit, shots=shots)


def test_a_demonstration_is_no_copy_of_a_scored_row(tmp_path: Path) -> None:
    """Row 3 says the same as row 1, which is scored: the only other row is the demonstration."""
    write(tmp_path / TEMPLATES, RTE)
    rows = [{"premise": premise, "hypothesis": "it is", "label": 0} for premise in ("a", "b", "a", "c")]
    write(tmp_path / "eval/super_glue_rte.jsonl", "\n".join(map(json.dumps, rows)))
    for seed in range(4):
        (task,) = P3Dataset(tmp_path).eval_tasks("super_glue_rte", limit=2, shots=1, seed=seed)
        assert [one.input for one in task.instruction.demonstrations] == ["c So it is?"]
        (whole,) = P3Dataset(tmp_path).eval_tasks("super_glue_rte", shots=1, seed=seed)
        assert whole.instruction.demonstrations[0].input not in {one.input for one in whole.examples}


def test_with_full_every_row_has_the_same_demonstrations(held_out: P3Dataset) -> None:
    tasks = P3Dataset(held_out.root, instruction="full").eval_tasks("super_glue_rte", limit=3, shots=2)
    by_prompt = [task for task in tasks if task.name.endswith("does it follow")]
    assert len(by_prompt) == 3 and len({task.instruction.demonstrations for task in by_prompt}) == 1


def test_splits_are_those_of_table_11() -> None:
    assert [len(data_sets(split) or ()) for split in p3_files.SPLITS] == [5, 10, 20, 36]
    with pytest.raises(ConfigError, match="P3 has no split '7'; there are 5, 10, 20, 36 and all"):
        data_sets("7")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("train/super_glue_rte_say_more.jsonl", "{", "line 1: is not JSON"),
        (
            "train/super_glue_rte_say_more.jsonl",
            '{"inputs_pretokenized": "a"}',
            "line 1, targets_pretokenized: is missing",
        ),
        ("train/other.jsonl", "", "other.jsonl: belongs to no template"),
        ("eval/super_glue_rte.jsonl", "[1]", "line 1: must be a JSON object"),
        ("eval/super_glue_rte.jsonl", '{"label": 1}', "'premise' is undefined), with row 1 of "),
        (
            "eval/super_glue_rte.jsonl",
            '{"label": 1, "premise": "a", "hypothesis": null}',
            "a field that it prints is null",
        ),
        ("eval/super_glue_rte.jsonl", "\n", "super_glue_rte.jsonl: holds no row"),
        (TEMPLATES, RTE.replace("original_task: true", "original_task: false"), "has no prompt for the rows of"),
        (
            TEMPLATES,
            RTE.replace("Yes ||| No", "Yes ||| Yes"),
            "two choices are the same",
        ),
        (TEMPLATES, RTE.replace('"Yes ||| No"', "null"), "cannot be rendered"),
        (
            TEMPLATES,
            RTE.replace('"Yes ||| No"', "null").replace("answer_choices[label]", "label"),
            "row 1 has no choices to rank",
        ),
    ],
)
def test_damaged_data_is_named(folder: Path, file: str, text: str, words: str) -> None:
    write(folder / file, text)
    dataset = P3Dataset(folder, "all")
    with pytest.raises(DataError, match=re.escape(words)):
        read_all(dataset)


def unlabelled() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every held-out task with every value that is no label of it."""
    for name, one in EVALUATION.items():
        field, allowed = one.field, one.labels
        others = [-1, "-1", "", " ", None, True, False, 1.0, 0.0, 0.5, len(allowed) + 1, "x", [], [1], {}, 10**30]
        if not isinstance(allowed[0], str):
            others += ["0", "1"]
        elif 1 not in allowed:
            others += [0, 1]
        yield name, {}, f"there is no {field}"
        for value in others:
            yield name, {field: value}, f"{field} is {json.dumps(value)}"


@pytest.mark.parametrize(("name", "row", "words"), list(unlabelled()))
def test_unlabelled_rows_are_refused(name: str, row: dict[str, Any], words: str, folder: Path) -> None:
    """The templates of this folder would answer: the row has all of their fields."""
    templates = RTE.replace("answer_choices[label]", "'Yes'")
    write(folder / "templates" / EVALUATION[name].templates / "templates.yaml", templates)
    field, allowed = EVALUATION[name].field, EVALUATION[name].labels
    told = {"premise": "a", "hypothesis": "b"}
    lines = [json.dumps({**told, field: allowed[-1]}), json.dumps({**told, **row})]
    write(folder / "eval" / f"{name}.jsonl", "\n".join(lines))
    with pytest.raises(DataError) as refused:
        P3Dataset(folder, "all").eval_tasks(name)
    assert f"row 2 has no label: {words}, and must be " in str(refused.value)
    assert len(P3Dataset(folder, "all").eval_tasks(name, limit=1)) == 1, "what is labelled is read"


def test_unlabelled_rows_end_the_command(folder: Path, tagi: Run) -> None:
    write(folder / "eval/super_glue_rte.jsonl", json.dumps({**ROWS[0], "label": -1}))
    mistake(tagi("eval", "p3", "--data", folder), "row 1 has no label: label is -1, and must be 0 or 1")


def read_all(dataset: P3Dataset) -> None:
    for one in dataset.train_sets():
        dataset.train_tasks(one)
    dataset.eval_tasks("super_glue_rte")


def test_a_damaged_archive_and_missing_folders_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "train/super_glue_rte_say_more.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    dataset = P3Dataset(folder, "all")
    with pytest.raises(DataError, match="is a damaged gzip file"):
        dataset.train_tasks(dataset.train_sets()[0])
    with pytest.raises(DataError, match="holds no rows of split 36"):
        P3Dataset(folder).train_sets()
    with pytest.raises(DataError, match="holds no held-out task"):
        P3Dataset(tmp_path / "no").eval_names()
    with pytest.raises(ConfigError, match="'rte' is no held-out task"):
        dataset.eval_tasks("rte")


# --- the published files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared_data: Path) -> P3Dataset:
    return P3Dataset(shared_data / "p3", "all")


def test_every_published_file_name_has_its_template(published: P3Dataset) -> None:
    found = published.train_sets()
    assert len(found) == len({one.name for one in found}) == 294
    here = {one.data_set for one in found}
    missing = {split: sorted(set(data_sets(split) or ()) - here) for split in p3_files.SPLITS}
    assert missing == {"5": [], "10": [], "20": ["quail"], "36": ["cos_e/v1.11", "quail"]}


@pytest.mark.parametrize(
    ("task", "prompts"),
    [
        ("anli-r1", 15),
        ("hellaswag", 4),
        ("super_glue_cb", 15),
        ("super_glue_copa", 12),
        ("winogrande_winogrande_xl", 5),
    ],
)
def test_held_out_tasks_render(published: P3Dataset, task: str, prompts: int) -> None:
    tasks = published.eval_tasks(task, limit=20)
    assert len(tasks) == prompts
    for one in tasks:
        assert all(example.targets[0] in example.choices for example in one.examples)


def test_published_rows_have_the_form_of_their_template(published: P3Dataset) -> None:
    """The 188 templates without if and for: the share of rows that a pattern of theirs matches, which is all."""
    patterns = [(one, pattern_of(one.template.jinja)) for one in published.train_sets()]
    shares = {one.name: matched(one, pattern) for one, pattern in patterns if pattern is not None}
    assert len(shares) == 188
    assert {name: share for name, share in shares.items() if share < 1.0} == {}


def matched(one: TrainSet, pattern: re.Pattern[str]) -> float:
    return fmean(bool(pattern.fullmatch(form(json.loads(line)))) for _, line in p3_files.read_lines(one.path))


def form(row: dict[str, Any]) -> str:
    return f"{' '.join(row['inputs_pretokenized'].split())} ||| {' '.join(row['targets_pretokenized'].split())}"


def pattern_of(jinja: str) -> re.Pattern[str] | None:
    """The words of a template with anything in place of its fields; None where it has conditions or loops."""
    parts: list[str] = []
    for node in environment(masks=False).parse(jinja).body:
        if isinstance(node, nodes.Output):
            parts += [one.data if isinstance(one, nodes.TemplateData) else "\0" for one in node.nodes]
        elif not isinstance(node, nodes.Assign):
            return None
    words = re.split(r"(\s*\|\|\|\s*|\s+|\0)", "".join(parts).strip())
    return re.compile("".join(map(_piece, words)), re.DOTALL)


def _piece(word: str) -> str:
    if "|||" in word:
        return r"\s*\|\|\|\s*"
    return ".*" if word == "\0" else r"\s*" if word.isspace() else re.escape(word)
