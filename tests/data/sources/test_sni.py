import copy
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tagi.config import DataConfig
from tagi.data.sources.base import meta_split
from tagi.data.sources.sni import Sni
from tagi.data.sources.sni_files import (
    SniDataset,
    largest_categories,
    load_task,
    without_overlap,
)
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.errors import ConfigError, DataError

on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def record(instances: int = 3, /, **fields: Any) -> dict[str, Any]:
    return {
        "Categories": ["Program Execution"],
        "Definition": ["Reverse the list."],
        "Positive Examples": [{"input": "a b", "output": "b a", "explanation": "Swapped."}],
        "Negative Examples": [],
        "Instances": [{"id": f"t-{i}", "input": f"x {i}", "output": [f"{i} x"]} for i in range(instances)],
    } | fields


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def dataset(root: Path, train: list[str], **records: dict[str, Any]) -> SniDataset:
    for name, content in records.items():
        write(root / "tasks" / f"{name}.json", content)
    split = root / "splits" / "default"
    split.mkdir(parents=True)
    (split / "train_tasks.txt").write_text("\n".join(train), encoding="utf-8")
    return SniDataset(root)


def test_a_task_is_read_whole(tmp_path: Path) -> None:
    content = record(1, Definition=[" Reverse the list. ", "Turn it round."])
    content["Instances"][0]["output"] = ["0 x", "", "0  x"]
    assert load_task(write(tmp_path / "task7_reverse.json", content)) == Task(
        name="task7_reverse",
        instruction=Instruction("Reverse the list.", (Demonstration("a b", "b a"),)),
        categories=("Program Execution",),
        examples=[Example("t-0", "x 0", ("0 x", "", "0  x"))],
    )


def test_a_definition_may_be_a_string_and_a_file_may_start_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(record(Definition="Sort the list.")), encoding="utf-8-sig")
    assert load_task(path).instruction.definition == "Sort the list."


def test_the_first_instances_or_a_seeded_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", record(50))
    whole = [example.id for example in load_task(path).examples]
    assert [example.id for example in load_task(path, limit=4).examples] == whole[:4]
    assert [example.id for example in load_task(path, limit=80).examples] == whole

    def sample(seed: int) -> list[str]:
        return [example.id for example in load_task(path, limit=20, seed=seed).examples]

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1))) == 20 and set(sample(1)) < set(whole)


def test_listing_opens_no_task_file(tmp_path: Path) -> None:
    data = dataset(tmp_path, ["b", "", "a"], a=record(), b=record())
    for file in (tmp_path / "tasks").iterdir():
        file.write_bytes(b"\xff not JSON")
    assert data.names("train") == ["b", "a"]


def test_english_by_every_language_field(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        [],
        silent=record(),
        english=record(Input_language=["English"], Output_language=["English"]),
        french=record(Output_language=["French"]),
        mixed=record(Input_language=["English", "Hindi"]),
        told=record(Instruction_language="Spanish"),
    )
    assert list(data.by_language(["told", "silent", "mixed", "french", "english"])[0]) == ["silent", "english"]


def instance(**fields: Any) -> dict[str, Any]:
    return record(Instances=[{"id": "i", "input": "x", "output": ["y"]} | fields])


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in record().items() if name != field}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be a JSON object"),
        (without("Definition"), "Definition: is missing"),
        (without("Categories"), "Categories: is missing"),
        (without("Positive Examples"), "Positive Examples: is missing"),
        (without("Instances"), "Instances: is missing"),
        (record(Definition=[]), "Definition: must not be empty"),
        (record(Definition=[" \n"]), "Definition: is empty"),
        (record(Definition=""), "Definition: is empty"),
        (record(Definition=5), "Definition: must be a list"),
        (record(Categories=[]), "Categories: must not be empty"),
        (record(Categories=[None]), "Categories[0]: must be a string"),
        (record(0), "Instances: must not be empty"),
        (record(Instances={"id": "i"}), "Instances: must be a list"),
        (record(Instances=["x"]), "Instances[0]: must be a JSON object"),
        (record(Instances=[{"id": "i", "input": "x"}]), "Instances[0].output: is missing"),
        (instance(input=None), "Instances[0].input: must be a string"),
        (instance(input=" "), "Instances[0].input: is empty"),
        (instance(output="y"), "Instances[0].output: must be a list"),
        (instance(output=[]), "Instances[0].output: must not be empty"),
        (instance(output=["y", 3]), "Instances[0].output[1]: must be a string"),
        (instance(id=7), "Instances[0].id: must be a string"),
        (record() | {"Positive Examples": [{"input": "x"}]}, "Positive Examples[0].output: is missing"),
        (
            record(Instances=record(2)["Instances"] + record(1)["Instances"]),
            "Instances: id 't-0' occurs twice",
        ),
    ],
)
def test_each_mistake_is_one_sentence_with_file_and_field(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "task1.json", content)
    with pytest.raises(DataError) as caught:
        load_task(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON"),
        (b'{"Categories": ["x"]', "is not JSON"),
        (b'{"Definition": "\xff"}', "is not UTF-8 (byte 16)"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"Definition": "\\ud800"}', "Definition: holds half of a surrogate pair"),
    ],
)
def test_files_that_are_no_json_text(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "task1.json"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_task(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train_tasks.txt: names no task"),
        (["a", "task10_revers"], "task10_revers: has no task file, did you mean task10_reverse?"),
        (["zzz"], "zzz: has no task file"),
        (["../a"], "../a: has no task file"),
        (["a", "task10_reverse", "a"], "a: is named twice"),
    ],
)
def test_split_files_that_cannot_be_used(tmp_path: Path, train: list[str], message: str) -> None:
    data = dataset(tmp_path, train, a=record(), task10_reverse=record())
    with pytest.raises(DataError) as caught:
        data.names("train")
    assert message in str(caught.value) and "train_tasks.txt" in str(caught.value)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tasks: there is no such folder"):
        SniDataset(tmp_path / "none").names("train")
    data = dataset(tmp_path, ["a"], a=record())
    with pytest.raises(DataError, match=r"test_tasks\.txt: cannot be read"):
        data.names("test")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(st.characters(codec="utf-8"))
written = texts.filter(str.strip)


def load_or_data_error(path: Path) -> Task | None:
    try:
        return load_task(path)
    except DataError:
        return None


@on_disk
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes_are_a_data_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(raw)
    assert load_or_data_error(path) is None


@on_disk
@given(st.data())
def test_a_damaged_file_loads_or_is_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(record(), ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    path = tmp_path / "t.json"
    path.write_bytes(raw)
    load_or_data_error(path)


@on_disk
@given(st.data())
def test_a_value_out_of_place_loads_or_is_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    content = record()
    spots = list(places(content))
    container, key = data.draw(st.sampled_from(spots))
    if data.draw(st.booleans()):
        container[key] = data.draw(json_values)
    else:
        del container[key]
    path = write(tmp_path / "t.json", content)
    task = load_or_data_error(path)
    assert task is None or is_well_formed(task)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def is_well_formed(task: Task) -> bool:
    strings = [task.instruction.definition, *task.categories]
    for example in task.examples:
        strings += [example.id, example.input, *example.targets]
    return (
        bool(task.instruction.definition.strip())
        and all(isinstance(item, str) for item in strings)
        and all(example.targets and example.input.strip() for example in task.examples)
        and len({example.id for example in task.examples}) == len(task.examples) > 0
    )


@on_disk
@given(
    st.fixed_dictionaries(
        {
            "Categories": st.lists(texts, min_size=1, max_size=3),
            "Definition": written | st.tuples(written, texts).map(list),
            "Positive Examples": st.lists(st.fixed_dictionaries({"input": texts, "output": texts})),
            "Instances": st.lists(
                st.fixed_dictionaries(
                    {"id": texts, "input": written, "output": st.lists(texts, min_size=1, max_size=3)}
                ),
                min_size=1,
                unique_by=lambda item: item["id"],
            ),
        },
        optional={"Domains": json_values, "Input_language": st.just(["English"])},
    )
)
def test_valid_files_always_load(tmp_path: Path, content: dict[str, Any]) -> None:
    assume(any(text.strip() for row in content["Instances"] for text in row["output"]))
    original = copy.deepcopy(content)
    task = load_task(write(tmp_path / "t.json", content))
    loaded = [{"id": e.id, "input": e.input, "output": list(e.targets)} for e in task.examples]
    assert loaded == original["Instances"]
    assert [{"input": p.input, "output": p.output} for p in task.instruction.demonstrations] == original[
        "Positive Examples"
    ]


def test_meta_split_holds_out_whole_tasks() -> None:
    names = [f"task{i}" for i in range(30)]
    train, valid = meta_split(names, 5, seed=3)
    assert len(valid) == 5
    assert sorted([*train, *valid]) == sorted(names)
    assert train == [name for name in names if name in set(train)]
    shuffled = random.Random(0).sample(names, len(names))
    assert set(meta_split(shuffled, 5, seed=3)[1]) == set(valid)
    assert set(meta_split(names, 4, seed=3)[1]) < set(valid)
    assert set(meta_split(names, 5, seed=4)[1]) != set(valid)
    assert meta_split(names, 0, seed=3) == (names, [])


def test_meta_split_leaves_a_training_task() -> None:
    with pytest.raises(ConfigError, match="valid_tasks 2 leaves no training task: there are 2"):
        meta_split(["a", "b"], 2, seed=0)


def test_overlap_ignores_case_and_spaces() -> None:
    def task(name: str, *inputs: str) -> Task:
        examples = [Example(f"{name}-{i}", text, ("y",)) for i, text in enumerate(inputs)]
        return Task(name, Instruction("Do it."), ("c",), examples)

    train = [task("a", "Red  Dog", "cat", "red dog."), task("b", "wolf")]
    kept = without_overlap([task("t", " red dog\n", "owl"), task("u", "fox"), task("v", "CAT")], train)
    assert [[row.input for row in one.examples] for one in kept] == [["owl"], ["fox"]]


def test_real_split(shared_data: Path) -> None:
    data = SniDataset(shared_data / "sni")
    train = [data.load(name, limit=100, seed=0) for name in data.names("train")]
    test = [data.load(name, limit=100) for name in data.names("test")]
    assert (len(train), len(test)) == (252, 17)
    assert [len(task.examples) for task in test] == [100] * 17
    assert max(len(task.examples) for task in train) == 100
    assert list(data.by_language(data.names("test"))[0]) == data.names("test")
    train_categories = {category for task in train for category in task.categories}
    assert train_categories.isdisjoint(category for task in test for category in task.categories)
    assert all(len(task.instruction.demonstrations) >= 2 for task in [*train, *test])


def test_real_rows_that_overlap(shared_data: Path) -> None:
    data = SniDataset(shared_data / "sni")
    train = [data.load(name) for name in data.names("train")]
    test = [data.load(name, limit=100) for name in data.names("test")]
    kept = {task.name: len(task.examples) for task in without_overlap(train, test)}
    lost = {task.name: len(task.examples) - kept.get(task.name, 0) for task in train}
    assert {name: rows for name, rows in lost.items() if rows} == {"task120_zest_text_modification": 100}


def test_real_files_survive_truncation(shared_data: Path, tmp_path: Path) -> None:
    name = SniDataset(shared_data / "sni").names("test")[0]
    raw = (shared_data / "sni" / "tasks" / f"{name}.json").read_bytes()
    path = tmp_path / f"{name}.json"
    for end in (0, 1, len(raw) // 2, len(raw) - 2):
        path.write_bytes(raw[:end])
        with pytest.raises(DataError, match="is not JSON"):
            load_task(path)
    path.write_bytes(raw.rstrip(string.whitespace.encode()))
    assert len(load_task(path).examples) == 100


# --- category splits --------------------------------------------------------------------------------------

TABLE_10 = (
    *(("Question Answering", 157), ("Program Execution", 90), ("Question Generation", 51)),
    *(("Sentiment Analysis", 42), ("Misc.", 36), ("Toxic Language Detection", 32)),
    *(("Text Categorization", 28), ("Commonsense Classification", 23), ("Text Matching", 17)),
    *(("Named Entity Recognition", 17), ("Information Extraction", 17), ("Wrong Candidate Generation", 15)),
    *(("Text Completion", 14), ("Question Understanding", 13), ("Text to Code", 12)),
)


def of_categories(*sizes: tuple[str, int]) -> list[Task]:
    return [Task(f"{name} {i}", Instruction("x"), (name, "Other"), []) for name, size in sizes for i in range(size)]


def test_category_splits_are_those_of_table_10() -> None:
    """The first and second split, from tasks in another order; ties within a split are ordered by name."""
    tasks = of_categories(*reversed(TABLE_10), ("Summarization", 12 - 1))
    assert largest_categories(tasks, 6) == [name for name, _ in TABLE_10[:6]]
    assert set(largest_categories(tasks, 15)) == {name for name, _ in TABLE_10}
    assert largest_categories(tasks, 10)[8:] == ["Information Extraction", "Named Entity Recognition"]
    with pytest.raises(ConfigError, match=r"data.categories: 60 are asked for, the training tasks have 16"):
        largest_categories(tasks, 60)


@pytest.mark.slow
def test_training_on_the_largest_categories(shared_data: Path) -> None:
    data = DataConfig(source="sni", path=str(shared_data / "sni"), max_instances=1)
    found = {count: Sni(data.model_copy(update={"categories": count})).tasks for count in (6, 15, 30, 33, None)}
    assert [len({task.categories[0] for task in tasks}) for tasks in found.values()] == [6, 15, 30, 33, 33]
    names = [{task.name for task in tasks} for tasks in found.values()]
    assert names[0] < names[1] < names[2] < names[3] == names[4]
    with pytest.raises(ConfigError, match="60 are asked for, the training tasks have 33"):
        _ = Sni(data.model_copy(update={"categories": 60})).tasks
