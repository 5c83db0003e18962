"""Every benchmark runs to its end on tiny models and prints what the pages quote; no time is asserted."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import adapt, flops, inference, logits, mixed, models, serve, store, training
from benchmarks.command import parser, run
from benchmarks.inference import break_even, requests_to_pay
from benchmarks.lengths import mean_task, sni_tasks
from benchmarks.models import SYSTEMS
from benchmarks.timing import Comparison, alternate
from builders import small_decoder, small_shape
from cli_runs import write_config
from tagi.cost.task import TaskLengths

TASK = TaskLengths(instruction=7, demonstration=3, shots=2, input=5, target=4)
Benchmark = Callable[..., dict[str, Any]]


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Runs a benchmark on a tiny model and a few short tasks; gives what it wrote to its file."""
    monkeypatch.setattr(models, "MICRO", small_shape(vocab_size=200).model_dump())
    monkeypatch.setattr(models, "SMOLLM2", small_decoder(vocab_size=200).shape.model_dump())
    for module in (inference, mixed):
        monkeypatch.setattr(module, "mean_task", lambda _: TASK)
    for module in (adapt, flops):
        monkeypatch.setattr(module, "sni_tasks", lambda _: [TASK, TASK])

    def measured(module: ModuleType, *arguments: object) -> dict[str, Any]:
        file = tmp_path / "found.json"
        run(module.main, module.OPTIONS, [*map(str, arguments), "--json-file", str(file)])
        return json.loads(file.read_text())

    return measured


def names(found: dict[str, Any]) -> list[list[str]]:
    return [[row[""] for row in one["rows"]] for one in found["comparisons"]]


TINY, TINY_DECODER = (("--shape", shape, "--rounds", 1) for shape in ("micro", "smollm2-135m"))


def test_inference(benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmark(inference, *TINY, "--batch", 1, 3, "--transformers", "--dtype", "bf16")
    prepared = [name for name in SYSTEMS if models.methods.get(name).reads_instruction_once]
    assert names(found) == [["transformers, prompt", *SYSTEMS]] * 2 + [["plain pass", *prepared]]
    assert [row[""] for row in found["tables"]["requests from which preparing pays against the prompt"]] == prepared * 2
    assert "answering, 3 at a time" in capsys.readouterr().out
    assert found["measured"].keys() == {"command", "date", "threads", "processor", "versions"}


def test_a_system_that_prepares_nothing_is_timed_alone(benchmark: Benchmark) -> None:
    assert names(benchmark(inference, *TINY, "--batch", 1, "--system", "no_instruction")) == [["no_instruction"]]


def test_inference_of_a_decoder(benchmark: Benchmark) -> None:
    """All systems that it can have, and `transformers` with the instruction's keys and values at hand."""
    (answered, once) = names(benchmark(inference, *TINY_DECODER, "--batch", 3, "--shots", 2, "--transformers"))
    assert answered[:2] == ["transformers, prompt", "transformers, cached prefix"]
    assert {"metatrain", "no_instruction", "tagi", "lora_only"} < set(answered)
    assert not {"fid_icl", "lora_fusion"} & set(answered)
    assert once[0] == "plain pass"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # of a model without a name
@pytest.mark.parametrize(("shape", "generator"), [("micro", "mlp"), ("smollm2-135m", "states")])
def test_mixed(
    benchmark: Benchmark,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shape: str,
    generator: str,
) -> None:
    monkeypatch.setattr(mixed, "COMPARED", 3)
    found = benchmark(mixed, "--shape", shape, "--generator", generator, "--rounds", 1, "--tasks", 3, 4)
    cold, warm = [mixed.DIFFERENT, mixed.LORA], [mixed.SAME, mixed.DIFFERENT, mixed.LORA]
    few = [[*warm, mixed.IN_TURN, mixed.PEFT], [*cold, mixed.PEFT]]
    assert names(found) == [*few, warm, cold]
    assert all(row["answers/s"] > 0 for one in found["comparisons"] for row in one["rows"])
    assert "4 tasks: neither one after another nor by peft" in capsys.readouterr().err


def test_adapt(benchmark: Benchmark) -> None:
    found = benchmark(adapt, *TINY, "--tasks", 1, 18)
    assert names(found) == [["plain pass", "tagi"]] * 2
    memory = {(row[""], row["case"]): row["kept of it"] for row in found["tables"]["memory, MiB"]}
    many, one = (memory[f"preparing tasks: {count}", "tagi"] for count in (18, 1))
    assert many == pytest.approx(18 * one)
    assert found["tables"]["the adapter's file"][0]["MiB"] > 0


def test_store(benchmark: Benchmark) -> None:
    found = benchmark(store, *TINY, "--tasks", 40, "--asked", 5)
    filled = {row[""]: row[" "] for row in found["tables"]["the store"]}
    assert filled["instructions registered"] == filled["of them come back word for word"] == 40
    assert filled["given out: generated"] >= 1
    assert names(found) == [["generated", "from disk", "from memory"]]


def test_flops(benchmark: Benchmark) -> None:
    asked = ("--shape", "micro", "--shots", 2, "--width", 8, "--system", "tagi")
    (table,) = benchmark(flops, *asked)["tables"].values()
    metatrain, floor, tagi = table
    assert (metatrain["mean ratio"], metatrain["once"], floor["to the lower bound"]) == (1.0, 0.0, 1.0)
    assert tagi["once"] > 0 and 1 < tagi["to the lower bound"] < metatrain["to the lower bound"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("shape", ["micro", "smollm2-135m"])
def test_training(benchmark: Benchmark, shape: str) -> None:
    sizes = ("--instruction", 5, "--input", 4, "--target", 3, "--tasks", 2, "--rows", 2, "--loras", 2)
    found = benchmark(training, "--shape", shape, "--rounds", 1, "--dtype", "bf16", *sizes)["comparisons"]
    assert [len(one["rows"]) for one in found] == [2, 4, 4 if shape == "smollm2-135m" else 3, 2]
    assert all(seconds > 0 for one in found for case in one["seconds"].values() for seconds in case)
    taken = min(found[2]["seconds"]["peft, instruction in the prompt"])
    assert found[2]["rows"][0]["tokens/s"] * taken == pytest.approx(48)


def test_training_compares_what_was_asked_for(benchmark: Benchmark) -> None:
    asked = ("--tasks", 1, "--rows", 1, "--instruction", 3, "--comparison", "transformers")
    assert names(benchmark(training, *TINY, *asked)) == [["transformers", "ours"]]


def test_logits(benchmark: Benchmark, metatrained: Path, tmp_path: Path) -> None:
    """The whole vocabulary is the online loss to the bit; fewer tokens can only lower it."""
    teacher: dict[str, Any] = {"kind": "instruct", "checkpoint": str(metatrained)}
    config = write_config(tmp_path, objective={"lambda_kl": 1.0, "temperature": 2.0, "teacher": teacher})
    (rows,) = benchmark(logits, "--config", config, "--batches", 1)["tables"].values()
    assert rows[-1]["error"] == 0.0 and rows[-1]["loss"] > 0
    assert all(row["error"] < -1e-3 for row in rows[:-1])  # from -0.22 nats a token to -0.026 as k grows


def mistake(capsys: pytest.CaptureFixture[str], module: ModuleType, *asked: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(module.main, module.OPTIONS, asked)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("benchmark")
def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One sentence, and a file that cannot be written is named before anything is measured for it."""
    late = ("--shape", "none", "--json-file", str(tmp_path))
    assert "cannot be written" in mistake(capsys, mixed, *late)
    assert "did you mean t5-small?" in mistake(capsys, mixed, "--shape", "t5-smal")
    few = ("--shape", "micro", "--system", "tgi")
    assert "did you mean tagi?" in mistake(capsys, inference, *few)
    assert "has an encoder" in mistake(capsys, mixed, "--shape", "micro", "--generator", "states")
    assert "'fp32', 'bf16'" in mistake(capsys, mixed, "--dtype", "fp16")
    decoder = ("--shape", "smollm2-135m")
    assert "llama is a decoder-only model without an encoder" in mistake(capsys, flops, *decoder)
    assert "without an encoder" in mistake(capsys, inference, *decoder, "--system", "fid_icl")
    assert "'0' is no whole number from 1 on" in mistake(capsys, mixed, "--tasks", "0")


def test_options_have_the_types_of_their_defaults() -> None:
    options = parser("", shots=0, tasks=(1, 8), shape="micro", transformers=False)
    asked = options.parse_args(["--shots", "0", "--tasks", "3", "4", "--transformers"])
    assert (asked.shots, asked.tasks, asked.shape, asked.transformers) == (0, [3, 4], "micro", True)


def test_every_case_of_every_comparison_takes_its_turn() -> None:
    """Once to warm up and once a round, none always behind the same other; comparisons get their own times back."""
    turns: list[str] = []
    one = Comparison("one", {"a": lambda: turns.append("1a"), "b": lambda: turns.append("1b")}, count=4)
    two = Comparison("two", {"a": lambda: turns.append("2a")})
    alternate([one, two], 3)
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert rounds == [["1a", "1b", "2a"], ["1a", "1b", "2a"], ["1b", "2a", "1a"], ["2a", "1a", "1b"]]
    assert [len(seconds) for x in (one, two) for seconds in x.seconds.values()] == [3, 3, 3]


def test_ratios_are_taken_round_by_round() -> None:
    found = Comparison("", {}, count=4, seconds={"first": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]})
    first, other = found.rows()
    assert (first["ratio"], first["answers/s"]) == (1.0, 2.0)
    assert (other["ms"], other["ratio"], other["low"], other["high"]) == (2000.0, 1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("preparing", "answer", "prompted", "requests"),
    [(1.0, 0.5, 1.0, 3), (0.9, 0.5, 1.0, 2), (0.0, 0.5, 1.0, 1), (1.0, 1.0, 1.0, None), (1.0, 2.0, 1.0, None)],
)
def test_requests_to_pay(preparing: float, answer: float, prompted: float, requests: int | None) -> None:
    """The first number for which preparing is cheaper, as counting finds it."""
    counted = (n for n in range(1, 1000) if preparing + n * answer < n * prompted)
    assert requests_to_pay(preparing, answer, prompted) == requests == next(counted, None)


def test_break_even_is_counted_in_requests_not_batches() -> None:
    """Preparing 12, a batch of 4 with the prompt 16, with an adapter 8: 2 saved by each request."""
    once = Comparison("", {}, seconds={"encoder": [1.0], "tagi": [12.0], "hint": [12.0]})
    answered = Comparison("", {}, count=4, seconds={"metatrain": [16.0], "tagi": [8.0], "hint": [18.0]})
    assert [tuple(row.values()) for row in break_even(once, answered)] == [("tagi", 4, 7), ("hint", 4, "never")]


def test_lengths_are_spread_evenly_over_those_of_the_tasks() -> None:
    assert adapt.spread([9, 1, 5], 1) == [5]
    assert adapt.spread([9, 1, 5], 6) == [1, 1, 5, 5, 9, 9]
    assert adapt.spread(range(1, 101), 4) == [13, 38, 63, 88]


def test_lengths_of_the_test_tasks() -> None:
    """As the pages quote them; a task that has fewer demonstrations than are asked for shows all that it has."""
    assert len(sni_tasks(2)) == 17 and {one.shots for one in sni_tasks(2)} == {2}
    assert sum(one.shots for one in sni_tasks(16)) / 17 == pytest.approx(3.2, abs=0.05)
    assert mean_task(0) == TaskLengths(instruction=80, demonstration=146, shots=0, input=116, target=13)


def test_memory_is_what_lives_at_once_and_what_stays() -> None:
    """Three products of which each dies before the next, and one more that stays."""
    x, size = torch.ones(100, 100), 100 * 100 * 4

    def work() -> torch.Tensor:
        return ((x @ x) @ x) @ x

    work()
    assert adapt.allocated(work) == (2 * size, size)
    assert adapt.allocated(lambda: [x.clone(), x.clone()]) == (2 * size, 2 * size)


def test_serve(benchmark: Benchmark) -> None:
    found = benchmark(serve, *TINY_DECODER[:2], "--tasks", 3, "--requests", 24, "--clients", 4, "--target", 4)
    rows = {row[""]: row[" "] for row in found["tables"]["over HTTP"]}
    assert rows["requests"] == 24 and rows["answers that are not the engine's"] == 0
