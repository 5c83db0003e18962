"""A mixture of sources: exact shares, every part with its own epochs, the same batches after a restart."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_text_tasks import write_c4

from cli_runs import Run, mistake, write_config
from sni_folders import write_sni
from tagi.cli.pretraining import every_source
from tagi.config import DataConfig, RunConfig
from tagi.config.files import parse
from tagi.data.mixture import Mixture, TaskSource, WeightedSources, fixed
from tagi.data.sources.micro import Micro
from tagi.data.synthetic.microtasks import micro_vocabulary
from tagi.data.tokenizers import unigram, unknown_words
from tagi.data.types import Example, Instruction, Task
from tagi.errors import ConfigError
from training_runs import config, furthest, logged, run


def make_tasks(name: str, sizes: Sequence[int]) -> TaskSource:
    return fixed(
        [
            Task(
                f"{name}{i}",
                Instruction(name),
                (name,),
                [Example(f"{name}{i}-{j}", "x" * (j + 1), ("y",)) for j in range(n)],
            )
            for i, n in enumerate(sizes)
        ]
    )


A, B, C = make_tasks("a", [6, 4]), make_tasks("b", [8, 2, 3]), make_tasks("c", [5])


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((0.45, 0.30, 0.25), (9, 6, 5)),
        ((2, 1, 1), (2, 1, 1)),
        ((1, 1, 1e-9), (500, 500, 1)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),
    ],
)
def test_shares_come_out_exactly_in_every_round(shares: tuple[float, ...], counts: tuple[int, ...]) -> None:
    mixed = WeightedSources((A, B, C), shares)
    assert mixed.counts == counts
    length = sum(counts)
    for first in (0, 7 * length):
        assert Counter(mixed.turn(first + i)[0] for i in range(length)) == dict(enumerate(counts))


def test_turns_are_spread_evenly() -> None:
    mixed = WeightedSources((A, B, C), (0.5, 0.3, 0.2))
    for part, share in enumerate(mixed.shares):
        had = 0
        for turn in range(200):
            had += mixed.turn(turn)[0] == part
            assert abs(had - share * (turn + 1)) < 1.5


def test_every_part_counts_its_own_turns_without_a_gap() -> None:
    mixed = WeightedSources((A, B, C), (0.45, 0.30, 0.25))
    turns = [mixed.turn(turn) for turn in range(100)]
    for part in range(3):
        own = [number for one, number in turns if one == part]
        assert own == list(range(len(own)))


def test_every_row_of_every_part_is_visited() -> None:
    mixture = Mixture(WeightedSources((A, B, C), (0.2, 0.7, 0.1)), tasks=4, rows=1, seed=0)
    groups = [group for i in range(16) for group in mixture.batch(i)]
    # turns are whole: 0.2 from its share measured
    assert Counter(group.task.name[0] for group in groups)["b"] == pytest.approx(0.7 * len(groups), abs=1)
    seen = {row.id for group in groups for row in group.examples}
    assert seen == {row.id for source in (A, B, C) for task in source.first() for row in task.examples}


def test_a_part_sees_its_tasks_equally_often() -> None:
    mixture = Mixture(WeightedSources((A, B, C), (0.5, 0.3, 0.2)), tasks=15, rows=2, seed=3)
    names = Counter(group.task.name for i in range(16) for group in mixture.batch(i))
    assert [names[name] for name in ("a0", "a1", "b0", "b1", "b2", "c0")] == [60, 60, 24, 24, 24, 48]


def test_a_batch_of_a_mixture_is_a_function_of_seed_and_number() -> None:
    def ids(mixture: Mixture, index: int) -> list[str]:
        return [row.id for group in mixture.batch(index) for row in group.examples]

    first = Mixture(WeightedSources((A, B, C), (0.45, 0.30, 0.25)), tasks=3, rows=2, seed=7)
    expected = [ids(first, i) for i in range(40)]
    other = Mixture(WeightedSources((A, B, C), (0.45, 0.30, 0.25)), tasks=3, rows=2, seed=7)
    assert [ids(other, i) for i in (39, 17, 0)] == [expected[i] for i in (39, 17, 0)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Microtasks in the layout of Super-NaturalInstructions, and plain documents in C4's."""
    sni = tmp_path_factory.mktemp("sni")
    split = Micro(DataConfig(source="micro", compositions=20)).split
    write_sni(sni, (task.task(demonstrations=2) for task in split.compositions), (split.test[0].task(),), 6)
    return {"sni": sni, "c4": write_c4(tmp_path_factory.mktemp("c4"))}


def task_source(settings: RunConfig) -> WeightedSources:
    return every_source().train(settings.data, settings.demonstrations, settings.training.seed)


def mixed(folders: dict[str, Path], **text: Any) -> dict[str, Any]:
    return {
        "source": "mixture",
        "parts": {
            "benchmark": {
                "weight": 0.5,
                "source": "sni",
                "path": str(folders["sni"]),
                "valid_tasks": 3,
                "valid_instances": 2,
            },
            "micro": {"weight": 0.2, "source": "micro", "compositions": 20},
            "text": {"weight": 0.3, "source": "text", "path": str(folders["c4"]), "valid_tasks": 2, **text},
        },
    }


def test_sources_and_valid_tasks_of_a_mixture(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = config(tmp_path, data=mixed(folders, valid_instances=4))
    source = task_source(settings)
    assert source.counts == (5, 2, 3)
    held_out = every_source().valid(settings.data, settings.prompt.demonstrations)
    assert [len(task.examples) for task in held_out] == [2, 2, 2, 4, 4]
    trained = {source.sources[0].task(i, 0).name for i in range(len(source.sources[0]))}
    assert not trained & {task.name for task in held_out}


def test_categories_have_equally_many_turns_and_their_tasks_take_them(folders: dict[str, Path], tmp_path: Path) -> None:
    plain, balanced = mixed(folders), mixed(folders)
    balanced["parts"]["benchmark"]["balance"] = "category"
    every, source = (task_source(config(tmp_path, data=data)) for data in (plain, balanced))
    tasks = [one.task(i, 0) for one in source.sources[:-2] for i in range(len(one))]
    assert sorted(task.name for task in tasks) == sorted(every.sources[0].task(i, 0).name for i in range(len(tasks)))
    categories = {task.categories[0] for task in tasks}
    assert [{one.task(i, 0).categories[0] for i in range(len(one))} for one in source.sources[:-2]] == [
        {name} for name in sorted(categories)
    ]
    sizes = {len(one) for one in source.sources[:-2]}
    assert len(categories) > 1 and len(sizes) > 1, "or there is nothing to balance"
    mixture = Mixture(source, tasks=10, rows=1, seed=0)
    groups = [group for i in range(48) for group in mixture.batch(i)]
    turns = Counter(group.task.categories[0] for group in groups if group.task.name in {task.name for task in tasks})
    assert max(turns.values()) - min(turns.values()) <= 2
    assert sum(turns.values()) == pytest.approx(0.5 * len(groups), abs=len(categories))  # 4 of 9 measured


def test_a_data_set_by_itself_can_be_balanced(folders: dict[str, Path], tmp_path: Path) -> None:
    source = task_source(config(tmp_path, data={"source": "sni", "path": str(folders["sni"]), "balance": "category"}))
    assert len(set(source.counts)) == 1 and len(source.counts) > 1


def test_demonstrations_of_every_part_are_shown(folders: dict[str, Path], tmp_path: Path) -> None:
    source = task_source(config(tmp_path, data=mixed(folders), prompt={"style": "plain", "demonstrations": 2}))
    shown = [[len(part.task(i, 0).instruction.demonstrations) for i in range(6)] for part in source.sources]
    assert shown == [[2] * 6] * 3


def test_support_is_given_or_drawn(folders: dict[str, Path], tmp_path: Path) -> None:
    """SNI's own positive examples (Def + 2 Pos), or k of a task's rows on every visit, apart from those asked (A.1)."""

    def shown(support: str) -> list[tuple[str, ...]]:
        data = {"source": "sni", "path": str(folders["sni"]), "support": support}
        (source,) = task_source(config(tmp_path, data=data, prompt={"style": "plain", "demonstrations": 2})).sources
        visits = [source.task(0, visit) for visit in range(6)]
        for task in visits:
            asked = {row.input for row in task.examples}
            assert support == "given" or not asked & {one.input for one in task.instruction.demonstrations}
        return [tuple(one.input for one in task.instruction.demonstrations[:2]) for task in visits]

    given, drawn = shown("given"), shown("drawn")
    assert len(set(given)) == 1 and len(set(drawn)) > 1 and {len(each) for each in drawn} == {2}
    with pytest.raises(ConfigError, match="support=drawn draws from a task's own rows"):
        parse(DataConfig, {"source": "micro", "support": "drawn"}, source="test")


def test_some_turns_are_without_demonstrations(folders: dict[str, Path], tmp_path: Path) -> None:
    data = mixed(folders, zero_shot=0.25)
    data["parts"]["benchmark"] |= {"zero_shot": 0.5, "balance": "category"}
    source = task_source(config(tmp_path, data=data, prompt={"style": "plain", "demonstrations": 2}))
    counts, again = (
        [[len(part.task(i % len(part), i).instruction.demonstrations) for i in range(200)] for part in source.sources]
        for _ in range(2)
    )
    assert counts == again
    bare = [each.count(0) / len(each) for each in counts]
    # 200 draws have a standard error of 0.035; worst measured 0.015 and 0.025
    assert bare[:-2] == pytest.approx([0.5] * (len(bare) - 2), abs=0.1)
    assert bare[-2:] == pytest.approx([0.0, 0.25], abs=0.1)


def test_a_resumed_mixture_sees_the_same_batches(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = run(config(tmp_path / "whole", data=mixed(folders)), every_source())
    run(config(tmp_path / "cut", data=mixed(folders), training__steps=4), every_source())
    cut = run(config(tmp_path / "cut", data=mixed(folders)), every_source(), resume=True)
    assert furthest(whole, cut) == 0
    assert logged(tmp_path / "whole")[-1] == logged(tmp_path / "cut")[-1]


def test_a_unigram_tokenizer_reads_what_microtasks_say(folders: dict[str, Path]) -> None:
    texts = [json.loads(line)["text"] for line in next(folders["c4"].glob("c4-train*")).read_text().splitlines()]
    tokenizer = unigram([*texts, *["jumbo quiz vexed black fog"] * 200], 120)
    assert unknown_words(tokenizer, " ".join(micro_vocabulary())) == []


MISTAKES = [
    (["data.parts.text.weight=0"], ["data.parts.text.weight", "greater than 0"]),
    (["data.parts.other.weight=1"], ["data.parts.other", "required"]),
    (["data.parts.text.source=c4"], ["data.parts.text", "c4 cannot be part of a mixture"]),
    (["data.parts.text.source=mixture"], ["data.parts.text"]),
    (["data.parts.text.wieght=1"], ["data.parts.text.wieght", "unknown key", "weight"]),
    (["data.parts.text.path=/nowhere"], ["/nowhere", "c4-train"]),
    (["data.parts.text.path=null"], ["data.parts.text", "data.path is required for source=text"]),
    (["data.parts.text.balance=category"], ["data.parts.text", "balance=category needs a data set with categories"]),
    (["data.parts.text.zero_shot=0.5", "prompt.demonstrations=0"], ["zero_shot", "prompt.demonstrations"]),
    (["data.zero_shot=0.5"], ["data", "zero_shot", "source=mixture"]),
    (["data.parts={}"], ["data", "source=mixture needs parts"]),
    (["data.source=micro"], ["data", "source=mixture needs parts"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES)
def test_mistakes_are_one_sentence(
    overrides: list[str], words: list[str], folders: dict[str, Path], tagi: Run, tmp_path: Path
) -> None:
    file = write_config(tmp_path, data=mixed(folders))
    mistake(tagi("train", "finetune", "--config", file, *overrides), *words)


def test_a_dry_run_measures_a_mixture(folders: dict[str, Path], tagi: Run, tmp_path: Path) -> None:
    result = tagi("train", "finetune", "--config", write_config(tmp_path, data=mixed(folders)), "--dry-run", "--json")
    assert result.code == 0
    assert (result.json["rows_per_step"], result.json["tokens_are"]) == (4, "measured")


def test_a_text_source_by_itself_trains(folders: dict[str, Path], tmp_path: Path) -> None:
    data = {"source": "text", "path": str(folders["c4"]), "valid_tasks": 1, "valid_instances": 2}
    settings = config(tmp_path, data=data, training__steps=1)
    assert (run(settings, every_source()) / "tagi.json").exists()
    with pytest.raises(ConfigError, match=r"data\.source: text has no tasks or text of its own here"):
        run(settings)


def test_stages_without_tasks_refuse_a_mixture(folders: dict[str, Path], tmp_path: Path) -> None:
    for stage in ("pretrain", "teachers", "backbone"):
        with pytest.raises(ConfigError, match=f"mixture does not suit stage {stage}"):
            config(tmp_path, data=mixed(folders), stage=stage)


def test_parts_belong_to_a_mixture_alone() -> None:
    part = {"weight": 1, "source": "micro"}
    with pytest.raises(ConfigError, match="nothing else has any"):
        parse(DataConfig, {"source": "micro", "parts": {"a": part}}, source="test")
    with pytest.raises(ConfigError, match="part=test cannot be part of a mixture"):
        parse(DataConfig, {"source": "mixture", "parts": {"a": part | {"part": "test", "skip": 1}}}, source="test")
