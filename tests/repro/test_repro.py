"""`tagi repro`: from what is missing to Markdown, JSON and pictures, at toy size."""

import json
import re
from dataclasses import replace
from pathlib import Path
from shlex import split
from typing import Any, get_args

import pytest
from toy_configs import CONFIGS, write_configs

from blocks import claim
from cli_runs import Result, Run, mistake
from tagi import methods
from tagi.cli.repro import Name
from tagi.config import RunConfig
from tagi.config.files import override
from tagi.config.shapes import SHAPES
from tagi.repro import experiments, paper, scales
from tagi.repro.beds import Bed, Entry
from tagi.repro.figures import draw
from tagi.repro.runs import RUNS, T0, TK_INSTRUCT, fid_icl, named
from tagi.repro.scales import Scale
from tagi.repro.tables import as_json, score
from tagi.train import resume, trainer
from toy_paper import SHAPE, write_paper

FEW = "micro", "--tasks", "4", "--instances", "2"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with toy configs, in which synthetic tasks are scored in a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scales, "SYNTHETIC", FEW)
    write_configs(tmp_path, steps=2)
    return tmp_path


@pytest.fixture
def two_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: experiments.MAIN[name] for name in ("No FT", "TAGI")}
    monkeypatch.setattr(experiments, "MAIN", some)


def made(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    return result.json


@pytest.mark.usefixtures("two_systems")
def test_table2_from_nothing_to_its_numbers(tagi: Run, toy: Path) -> None:
    found = made(tagi("repro", "table2", "--run", "--json"))
    assert found["missing"] == []
    rows = {row["label"]: row for row in found["parts"][0]["rows"]}
    assert rows["TAGI"]["paper"]["Def, XL"] == 48.4
    for label in ("No FT", "TAGI"):
        ours = rows[label]["ours"]
        assert ours.keys() == {"Def", "Def + 2 Pos."}
        assert all(0 <= one["score"] <= 1 and len(one["seeds"]) == 1 for one in ours.values())
    scores = next((toy / "runs/micro-def/finetune/scores").glob("*/scores.json"))
    assert json.loads(scores.read_text())["exact_match"] == rows["TAGI"]["ours"]["Def"]["score"]
    assert json.loads((toy / "runs/repro/table2-micro.json").read_text()) == found
    text = (toy / "runs/repro/table2-micro.md").read_text()
    assert "| paper: Def, XL |" in text and "| ours: Def |" in text and "## Missing" not in text
    assert "| TAGI | 35.3 | 48.4 |" in text


@pytest.mark.usefixtures("two_systems")
@pytest.mark.slow
def test_what_is_missing_is_a_dash_with_a_command_that_trains_it(tagi: Run, toy: Path) -> None:
    """The commands by themselves, in their order, leave nothing missing; scores are kept while the checkpoint stays."""
    missing = made(tagi("repro", "table2", "--json"))["missing"]
    assert [one["output"] for one in missing][:2] == ["runs/micro-metatrain-0", "runs/ablation-bank"]
    assert missing[0]["hours"] > 0
    text = (toy / "runs/repro/table2-micro.md").read_text()
    assert all(one["command"] in text for one in missing)
    assert "| TAGI | 35.3 | 48.4 | 52.3 | 42.5 | 56.3 | 58.4 | 0.39 | – | – |" in text
    for one in missing:
        assert tagi(*split(one["command"])[1:]).code == 0
    first, again = tagi("repro", "table2", "--json"), tagi("repro", "table2", "--json")
    assert made(first)["missing"] == [] and made(first) == made(again)
    assert (first.err.count("scoring"), again.err.count("scoring")) == (5, 0)
    here, there = (toy / f"runs/micro-{one}/finetune/final/model.safetensors" for one in ("def", "def2pos"))
    here.write_bytes(there.read_bytes())
    assert tagi("repro", "table2").err.count("scoring") == 1


@pytest.mark.usefixtures("two_systems")
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, saved = trainer._save, list[Path]()

    def stop(run: Any, *rest: Any) -> None:
        if "finetune" in str(run.folder):
            raise KeyboardInterrupt
        real(run, *rest)

    monkeypatch.setattr(trainer, "_save", stop)
    assert tagi("repro", "table2", "--run").code == 130
    monkeypatch.setattr(trainer, "_save", lambda run, *rest: (saved.append(run.folder), real(run, *rest)))
    assert made(tagi("repro", "table2", "--run", "--json"))["missing"] == []
    assert Path("runs/micro-metatrain-0") not in saved and Path("runs/micro-def/finetune") in saved


def test_a_figure_is_drawn_twice_without_the_points_that_are_missing(tmp_path: Path) -> None:
    there, missing = Entry((), ("there",)), Entry((), ("missing",))
    line = experiments.Line("TAGI", ((6, (there,)), (15, (missing,))))
    panel = experiments.Panel("Def", "groups", "exact_match", (line,))
    tasks = {name: {"n": 3, "exact_match": value} for name, value in (("a", 0.2), ("b", 0.6))}
    scores = {there: {"exact_match": 0.4, "by_task": tasks}}
    drawn = as_json(experiments.Experiment("Figure", (panel, panel)), scores)["parts"]
    files = draw(drawn, tmp_path, "figure")
    assert [file.name for file in files] == ["figure.svg", "figure.png"]
    assert files[0].read_text().startswith("<?xml") and files[1].read_bytes().startswith(b"\x89PNG")


STAGES = [(scale, name) for scale in scales.BEDS for name in experiments.MADE]


@pytest.mark.parametrize(("scale", "name"), STAGES)
def test_every_config_of_every_table_builds(scale: Scale, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tagi train` reads it from its command; what it starts from is made by an earlier stage, or is published."""
    monkeypatch.chdir(CONFIGS.parent)
    written: set[str] = set()
    published = {*TK_INSTRUCT.values(), *(fid_icl(size, family) for size in T0 for family in ("t5lm", "t0"))}
    for stage in experiments.experiment(name, scale, "data", range(2)).stages():
        config = stage.run
        assert (config.stage, config.output) == (stage.stage, stage.output)
        methods.of(config)
        teacher = config.objective.teacher if config.objective.lambda_kl else None
        for place in (config.start_from, config.bank, config.bank_base, teacher and teacher.checkpoint):
            assert place is None or place in written | published, (stage.output, place)
        written.add(f"{config.output}/final")


@pytest.mark.parametrize("name", ["sni-base-def", "sni-xl-def2pos", "sni-xxl-def", "p3-large-t0"])
def test_the_paper_s_tagi_is_the_named_run(name: str) -> None:
    """So that what `tagi train all` has trained is found; of XXL, Figure 4 keeps more checkpoints."""
    beds = scales.paper("data")
    (bed,) = (one for one in (*(bed for pair in beds.sni for bed in pair), *beds.p3) if one.name == name)
    found, known = {stage.stage: stage.run for stage in bed.tagi(0).stages}, dict(named(name))
    assert list(found) == list(known)
    for stage, config in known.items():
        assert resume.changes(config, found[stage]) == []


def test_the_paper_s_numbers_are_in_the_paper() -> None:
    """Every row as it is printed there, in the same order."""
    file = Path(__file__).resolve().parents[3] / "shared" / "paper.md"
    if not file.exists():
        pytest.skip(f"the paper is not here ({file})")
    lines = [
        re.sub(r"<[^>]*>|[‡†*×]|\$\S+\$|\$\\times ", "", line).replace("$", "")
        for line in file.read_text().splitlines()
    ]
    printed = {tuple(one for one in map(str.strip, line.split("\t")[1:])) for line in lines}
    tables = (paper.TABLE_2, paper.TABLE_3, paper.TABLE_3_HYPERT5, paper.TABLE_4, paper.TABLE_7)
    rows = [values for table in tables for values in table.rows.values()] + list(paper.TABLE_9.values())
    numbers = {tuple(None if one == "-" else float(one) for one in line) for line in printed if _numeric(line)}
    assert [values for values in rows if values not in numbers] == []


def _numeric(line: tuple[str, ...]) -> bool:
    return bool(line) and all(re.fullmatch(r"-|\d+(\.\d+)?", one) for one in line)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("table5",), ("table5", "table1")),
        (("table2", "--scale", "pico"), ("pico", "nano")),
        (("table2", "--seeds", "0"), ("--seeds",)),
        (("table2", "--scale", "nano", "--data", "none", "--run"), ("none/sni", "tagi data fetch sni", "--data")),
        (("table2", "-o", "configs/default.yaml"), ("configs/default.yaml", "file")),
    ],
)
def test_mistakes(arguments: tuple[str, ...], words: tuple[str, ...], tagi: Run, toy: Path) -> None:
    mistake(tagi("repro", *arguments), *words)
    assert not (toy / "runs").exists()


def test_outside_of_a_checkout(tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mistake(tagi("repro", "table2"), "configs/micro/")


def test_another_run_in_its_place_is_refused(tagi: Run, toy: Path) -> None:
    command = "train", "metatrain", "--config", "configs/micro/metatrain.yaml", "output=runs/micro-metatrain-0"
    assert tagi(*command, "training.lr=0.5").code == 0
    mistake(tagi("repro", "table2"), "runs/micro-metatrain-0", "another run", "training.lr: 0.5 → 0.01")


LINES = [line.partition("  #")[0] for block in claim("docs/reproduce.md") for line in block.text.splitlines()]


@pytest.mark.parametrize("line", [pytest.param(one, marks=pytest.mark.slow if "--run" in one else ()) for one in LINES])
def test_the_commands_of_the_documentation_run(
    line: str, tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_paper(toy)
    (toy / "DATA").symlink_to("data")
    for stage in scales.NANO_STEPS:
        monkeypatch.setitem(scales.NANO_STEPS, stage, 2)
    done = tagi(*split(line)[1:])
    assert done.code == 0, done.err
    assert done.out.startswith("# Table")


@pytest.mark.parametrize("name", ["table1", "table8"])
def test_the_tables_of_characteristics(name: str, tagi: Run, toy: Path) -> None:
    rows = made(tagi("repro", name, "--json"))["rows"]
    assert {row["label"] for row in rows if row["paper"] != row["ours"]} == set()
    assert len(rows[0]["ours"]) == (5 if name == "table1" else 8)
    assert "| TAGI | " in (toy / f"runs/repro/{name}.md").read_text()


def test_help_is_among_the_commands_to_reproduce(tagi: Run) -> None:
    lines = tagi("--help").out.splitlines()
    heads = [number for number, line in enumerate(lines) if " Reproduce " in line]
    assert any("repro" in line.split()[:2] for line in lines[heads[0] : heads[0] + 6])


def test_a_mean_over_seeds_and_its_interval() -> None:
    """Tasks are what the interval is over, each with its mean over the seeds."""
    tasks = {f"t{n}": {"n": 2, "exact_match": float(n % 2)} for n in range(8)}
    one, other = ({"exact_match": m, "by_task": tasks} for m in (0.4, 0.6))
    entries = Entry((), ("a",)), Entry((), ("b",)), Entry((), ("missing",))
    found = score(entries, "exact_match", {entries[0]: one, entries[1]: other})
    assert found is not None and found["seeds"] == [0.4, 0.6] and found["score"] == pytest.approx(0.5)
    assert found["interval"] is not None and 0 < found["interval"][0] < 0.5 < found["interval"][1] < 1
    assert score((entries[2],), "exact_match", {}) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(Name))
def test_every_table_at_micro_scale(name: str, tagi: Run, toy: Path) -> None:
    write_configs(toy, steps=5)
    found = made(tagi("repro", name, "--run", "--json"))
    assert_complete(found, toy)
    if name == "figure4":
        steps, aligned = (part["lines"][0]["points"] for part in found["parts"])
        assert [one["x"] for one in steps] == [1, 2, 3, 4, 5] and [one["x"] for one in aligned] == [0, 6, 15]
        bank = json.loads((toy / "runs/micro-def/teachers-6/final/bank.json").read_text())
        assert len(bank["teachers"]) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("name", ["table2", "table4", "table7", "figure3", "figure4"])
def test_tables_at_nano_scale(name: str, tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On toy data in the benchmarks' layouts, the small models smaller still. Table 3 needs more rows of P3."""
    write_paper(toy)
    write_configs(toy, steps=5)
    for stage in scales.NANO_STEPS:
        monkeypatch.setitem(scales.NANO_STEPS, stage, 5)
    assert_complete(made(tagi("repro", name, "--scale", "nano", "--run", "--json")), toy)


@pytest.mark.slow
@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("name", experiments.MADE)
def test_tables_at_the_paper_s_scale(name: str, tagi: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, with toy models under the published names; of P3's in-context rows only the commands are tried."""
    write_paper(toy)
    for shape in ("base", "large", "xl", "xxl"):
        monkeypatch.setitem(SHAPES, f"t5-v1_1-{shape}", SHAPE)
    for one, run in RUNS.items():
        monkeypatch.setitem(RUNS, one, lambda output, run=run: {k: shortened(c) for k, c in run(output).items()})
    if name in ("table3", "table9"):
        some = {label: experiments.IN_CONTEXT[label] for label in ("Zero-shot", "Metatrain", "TAGI")}
        monkeypatch.setattr(experiments, "IN_CONTEXT", some)
        without = {label: row for label, row in paper.TABLE_3_HYPERT5.rows.items() if label != "FiD-ICL"}
        monkeypatch.setattr(paper, "TABLE_3_HYPERT5", replace(paper.TABLE_3_HYPERT5, rows=without))
    found = made(tagi("repro", name, "--scale", "paper", "--run", "--json"))
    assert found["missing"] == []


@pytest.fixture
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy data has six categories and five of P3's data sets."""

    def some(bed: Bed, count: int) -> tuple[str, ...]:
        return () if bed.benchmark == "p3" else (f"data.categories={min(count, 30) // 5}",)

    monkeypatch.setattr(Bed, "groups", some)


def shortened(config: RunConfig) -> RunConfig:
    return override(config, ["training.steps=5", "training.tasks_per_batch=2"], source="test")


def assert_complete(found: dict[str, Any], folder: Path) -> None:
    """Nothing is missing, and only what the data lacks has no number: the systems that a scale does not have aside."""
    assert found.get("missing", []) == []
    text = next((folder / "runs/repro").glob(f"{found['name']}*.md")).read_text()
    assert "## Missing" not in text
    if found["name"] not in ("table1", "table8"):
        assert re.search(r"\d\.\d( \[|  ?\|)", text)
