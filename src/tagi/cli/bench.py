"""`tagi bench`: what things cost, as ratios measured side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Json, bar, print_json, stdout, table, waiting
from tagi.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

    from tagi.bench.store import StoreBench
    from tagi.bench.tasks import SystemCost
    from tagi.bench.timing import Comparison
    from tagi.config import T5Shape
    from tagi.model.costs import TaskLengths

EXAMPLE = "Example: tagi bench train --shape micro --rounds 5 --json-file train.json"
app = typer.Typer(help="Measure what things cost, as ratios of alternating runs.", no_args_is_help=True)
CASES = ("teachers", "step", "t5")

MICRO = {"vocab_size": 4000, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4}
"""The shape `micro`: 3 + 3 blocks of width 128."""
SAME_AS_METATRAIN = ("no_ft", "full_ft")
"""Systems that do at inference what metatraining does."""


@app.command("train", epilog=EXAMPLE)
def train(
    cases: Annotated[
        list[str] | None, typer.Argument(help=f"What to compare: {', '.join(CASES)}; all by default.")
    ] = None,
    shape: Annotated[str, typer.Option(help="micro, or a named T5 such as t5-small.")] = "micro",
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 8,
    teachers: Annotated[int, typer.Option(min=1, help="Teachers in the bank.")] = 16,
    teacher_rows: Annotated[int, typer.Option(min=1, help="Rows of each teacher in a step.")] = 2,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in a batch.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task in a batch.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the cases take turns.")] = 7,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Write every round here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Training: the teacher bank against peft, TAGI's step against metatraining's, our T5 against transformers'."""
    from tagi.bench import training
    from tagi.bench.training import Lengths
    from tagi.files import write_text

    if unknown := sorted(set(cases or ()) - set(CASES)):
        raise ConfigError(f"{unknown[0]}: there is no such comparison; there are {', '.join(CASES)}")
    chosen, lengths, found = _shape(shape), Lengths(tasks=tasks, rows=rows), []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases or CASES:
            with bar(case) as report:
                if case == "teachers":
                    found.append(training.bank_against_peft(chosen, teachers, teacher_rows, rank, rounds, report))
                elif case == "step":
                    kept = Path(folder) / "logits"
                    found.append(training.step_against_metatraining(chosen, lengths, rank, rounds, kept, report))
                else:
                    found.append(training.t5_against_transformers(chosen, lengths, rounds, report))
    result = {"shape": shape, "rounds": rounds, "comparisons": [one.as_json() for one in found]}
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=1))
    if as_json:
        print_json(result)
        return
    for one in found:
        stdout().print(_table(one))


@app.command("logits", epilog="Example: tagi bench logits --config configs/ablation/full.yaml")
def logits(
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="A run that distils from a teacher.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config fields to set.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches to take the loss over.")] = 8,
    as_json: Json = False,
) -> None:
    """Cached teacher logits: error of the loss and size on disk against the number of tokens kept."""
    from tagi.bench.logits import against_k
    from tagi.config import load

    with bar("comparing") as report:
        lines = against_k(load(config_file, overrides or ()), batches, report)
    if as_json:
        print_json({"lines": [line.as_json() for line in lines]})
        return
    made = table("cached teacher logits", ("tokens kept", "loss", "error", "bytes a token"))
    for line in lines:
        made.add_row(f"{line.k:,}", f"{line.loss:.6f}", f"{line.error:.1e}", f"{line.bytes_per_token:,.0f}")
    stdout().print(made)


def _shape(name: str) -> T5Shape:
    from tagi.config import T5Shape, parse
    from tagi.shapes import named_shape

    return parse(T5Shape, MICRO if name == "micro" else named_shape(name), source="--shape")


def _show(found: Sequence[Comparison], asked: Mapping[str, object], as_json: bool) -> None:
    """Comparisons as one JSON object, or as tables."""
    if as_json:
        print_json({**asked, "comparisons": [one.as_json() for one in found]})
        return
    for one in found:
        stdout().print(_table(one))


def _table(comparison: Comparison) -> Table:
    made = table(comparison.title, ("", "median ms", "ratio", "range"))
    for case in comparison.as_json()["cases"]:
        low, high = case["ratio_range"]
        made.add_row(case["name"], f"{case['median_s'] * 1000:,.1f}", f"{case['ratio']:.2f}", f"{low:.2f}-{high:.2f}")
    return made


Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Super-NaturalInstructions: tasks/ and splits/.")]
ShapeName = Annotated[str, typer.Option("--shape", help="micro, or a named T5 such as t5-small.")]
Shots = Annotated[
    int, typer.Option("--positives", min=0, help="Demonstrations of every task: 0 is Def, 2 is Def+2Pos.")
]
Rank = Annotated[int, typer.Option("--rank", min=1, help="LoRA rank.")]
Width = Annotated[int | None, typer.Option("--width", min=4, help="Width of fusion (default: d_model / 4).")]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="DIR", help="A tokenizer, folder or hub name (default: trained on the tasks)."),
]


@app.command("flops", epilog="Example: tagi bench flops --data natural-instructions --shape t5-base --positives 2")
def flops(
    data: Data,
    shape: ShapeName = "t5-base",
    positives: Shots = 0,
    rank: Rank = 32,
    width: Width = None,
    tokenizer: TokenizerOption = None,
    as_json: Json = False,
) -> None:
    """Count what every system spends on a task of 100 examples, at the lengths of the benchmark's test tasks."""
    from dataclasses import asdict

    from tagi.bench.tasks import mean_lengths, system_costs
    from tagi.config import FusionConfig, HypernetworkConfig

    lengths = _lengths(data, positives, tokenizer)
    found = system_costs(_shape(shape), HypernetworkConfig(rank=rank), FusionConfig(width=width), lengths)
    if as_json:
        asked = {"data": str(data), "shape": shape, "positives": positives, "rank": rank, "width": width}
        print_json({"systems": [asdict(one) for one in found], "lengths": mean_lengths(lengths), "command": asked})
        return
    stdout().print(_flops_table(found, f"100 examples of a task, {shape}, {positives} demonstrations"))


@app.command("inference", epilog="Example: tagi bench inference --data natural-instructions --shape t5-small")
def inference(
    data: Data,
    shape: ShapeName = "t5-small",
    positives: Shots = 0,
    rank: Rank = 32,
    width: Width = None,
    tokenizer: TokenizerOption = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Examples at a time (default: 1 and 16).")] = None,
    system: Annotated[list[str] | None, typer.Option(help="Only this system; may be given several times.")] = None,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Compare with the instruction in the prompt of `transformers`.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the systems take turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Time every system at the benchmark's mean lengths, on random weights: answering, and apart from it adapting."""
    from tagi.bench import inference as cases
    from tagi.bench.tasks import mean_task
    from tagi.config import FusionConfig, HypernetworkConfig
    from tagi.methods import METHODS, get

    task = mean_task(_lengths(data, positives, tokenizer))
    systems = [get(name) for name in system or ()]
    systems = systems or [method for method in METHODS if method.name not in SAME_AS_METATRAIN]
    systems.sort(key=lambda method: method.name != "metatrain")
    made = _shape(shape), systems, HypernetworkConfig(rank=rank), FusionConfig(width=width), task
    found = []
    for size in batch or (1, 16):
        with bar(f"batch {size}") as report:
            found.append(cases.answering(*made, size, rounds, report, transformers=transformers))
    if any(method.reads_instruction_once for method in systems):
        with bar("adapting") as report:
            found.append(cases.adapting(*made, rounds, report))
    _show(found, {"shape": shape, "rounds": rounds}, as_json)


@app.command("mixed", epilog="Example: tagi bench mixed --tasks 64 --rounds 5")
def mixed(
    shape: ShapeName = "t5-small",
    tasks: Annotated[int, typer.Option(min=1, help="Different tasks in the batch, one example each.")] = 64,
    instruction: Annotated[int, typer.Option(min=1, help="Tokens of an instruction.")] = 79,
    length: Annotated[int, typer.Option("--input", min=1, help="Tokens of an input.")] = 116,
    target: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 12,
    rank: Rank = 32,
    peft: Annotated[bool, typer.Option("--peft/--no-peft", help="Compare with peft's adapter_names.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the cases take turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Time a batch with a different task in every row, on random weights: adapters at hand, and tasks never seen."""
    from tagi.bench import mixed as cases
    from tagi.config import HypernetworkConfig
    from tagi.model.costs import TaskLengths

    task = TaskLengths(instruction, 0, 0, length, target)
    asked = (_shape(shape), HypernetworkConfig(rank=rank), task, tasks, rounds)
    with bar("adapters at hand") as report:
        found = [cases.warm(*asked, peft=peft, progress=report)]
    with bar("tasks never seen") as report:
        found.append(cases.cold(*asked, peft=peft, progress=report))
    _show(found, {"shape": shape, "tasks": tasks}, as_json)


@app.command("store", epilog="Example: tagi bench store --shape t5-small --tasks 100000 --asked 1000")
def store(
    shape: ShapeName = "t5-small",
    tasks: Annotated[int, typer.Option(min=1, help="Registered tasks.")] = 100_000,
    words: Annotated[int, typer.Option(min=1, help="Words of each instruction.")] = 79,
    asked: Annotated[int, typer.Option(min=0, help="Adapters asked for at random before the timing.")] = 1_000,
    memory: Annotated[float, typer.Option(min=0.0, help="Adapters in memory, GiB at most.")] = 1.0,
    disk: Annotated[float, typer.Option(min=0.0, help="Everything on disk, GiB at most.")] = 2.0,
    rank: Rank = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the ways take turns.")] = 7,
    as_json: Json = False,
) -> None:
    """Fill an adapter store and time a hit in memory, a hit on disk and a regeneration, on random weights."""
    from tagi.bench.store import store_bench

    bounds = (int(memory * 2**30), int(disk * 2**30))
    with tempfile.TemporaryDirectory() as folder, bar("asking for adapters") as report:
        found = store_bench(
            _shape(shape),
            Path(folder),
            tasks=tasks,
            length=words,
            asked=asked,
            rounds=rounds,
            rank=rank,
            bounds=bounds,
            progress=report,
        )
    if as_json:
        print_json({"shape": shape, "bounds": bounds, **found.as_json()})
        return
    stdout().print(_store_table(found, f"{tasks:,} tasks, {shape}"))
    stdout().print(_table(found.times))


def _store_table(found: StoreBench, title: str) -> Table:
    shown = table(title, ("", ""))
    shown.add_row("instructions that came back word for word", f"{found.kept:,} of {found.tasks:,}")
    for name, size in (
        ("an adapter", found.adapter_bytes),
        ("adapters in memory", found.memory_bytes),
        ("everything on disk", found.disk_bytes),
        ("the whole process at its largest", found.process_bytes),
    ):
        shown.add_row(name, f"{size / 2**20:,.1f} MiB")
    shown.add_row("registering one", f"{found.register_s * 1e6:,.0f} µs")
    for name in ("memory", "disk", "generated", "damaged", "unwritten"):
        shown.add_row(f"given out: {name}", f"{getattr(found.use, name):,}")
    return shown


def _lengths(data: Path, positives: int, tokenizer: str | None) -> list[TaskLengths]:
    """Token lengths of the benchmark's English test tasks."""
    from tagi.bench.tasks import lengths_of
    from tagi.config import PromptConfig
    from tagi.data.sni import SniDataset

    dataset, prompt = SniDataset(data), PromptConfig(positives=positives)
    with waiting("reading tasks"):
        chosen = _tokenizer(tokenizer, data)
        names = dataset.english(dataset.names("test"))
        return [lengths_of(dataset.load(name, limit=100), chosen, prompt) for name in names]


def _tokenizer(source: str | None, data: Path) -> PreTrainedTokenizerBase:
    """The tokenizer at hand, or one trained on the benchmark's training tasks."""
    from tagi.config import BackboneConfig, DataConfig
    from tagi.infer.engine import load_tokenizer
    from tagi.model.t5_hf import locate
    from tagi.train.start import random_tokenizer

    if source is not None:
        return load_tokenizer(locate(source))
    shape = _shape("micro").model_copy(update={"vocab_size": 8000})
    config = BackboneConfig(shape=shape, tokenizer="unigram")
    return random_tokenizer(config, shape, DataConfig(source="sni", path=str(data)))


def _flops_table(found: Sequence[SystemCost], title: str) -> Table:
    shown = table(f"{title}, GFLOPs", ("", "once", "answers", "mean ratio", "sum ratio", "to the floor"))
    shown.columns[0].no_wrap = True
    for one in found:
        once, answers = f"{one.adaptation / 1e9:,.1f}", f"{one.answering / 1e9:,.1f}"
        ratios = (f"{ratio:.2f}" for ratio in (one.mean_of_ratios, one.ratio_of_sums, one.over_floor))
        shown.add_row(one.name, once, answers, *ratios)
    return shown
