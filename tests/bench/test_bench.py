"""What benchmarks compute from measurements, and that both sides of a comparison are alike; no time is asserted."""

from pathlib import Path

import pytest
import torch

from builders import small_shape
from tagi.backbones.language_model import as_t5
from tagi.backbones.t5.weights import tensor_names
from tagi.bench import adapt, mixed, plot
from tagi.bench.inference import prepared, whole_task
from tagi.bench.memory import Allocated, allocated
from tagi.bench.models import Setup
from tagi.bench.timing import Comparison, Group, Series, Timing, alternate_all, shown
from tagi.config import FusionConfig, HypernetworkConfig
from tagi.methods import get
from tagi.model.costs import TaskLengths

TASK = TaskLengths(instruction=7, demonstration=3, shots=2, input=5, target=2, examples=10)
RANK = 3


def setup(dtype: torch.dtype = torch.float32) -> Setup:
    return Setup(small_shape(), HypernetworkConfig(rank=RANK), FusionConfig(width=8, heads=2), dtype)


def compared(title: str, answers: int | None = None, series: Series | None = None, **seconds: float) -> Comparison:
    timings = tuple(Timing(name, (value, 2 * value, 3 * value)) for name, value in seconds.items())
    return Comparison(title, timings, answers, series)


def test_every_case_of_every_group_takes_its_turn() -> None:
    """Once to warm up and once a round, none always behind the same other; groups get their own times back."""
    turns: list[str] = []
    groups = [
        Group("one", {"a": lambda: turns.append("1a"), "b": lambda: turns.append("1b")}, answers=4),
        Group("two", {"a": lambda: turns.append("2a")}),
    ]
    found = alternate_all(groups, 3)
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert rounds == [["1a", "1b", "2a"], ["1a", "1b", "2a"], ["1b", "2a", "1a"], ["2a", "1a", "1b"]]
    assert [(one.title, one.answers, [t.name for t in one.timings]) for one in found] == [
        ("one", 4, ["a", "b"]),
        ("two", None, ["a"]),
    ]
    assert all(len(timing.seconds) == 3 for one in found for timing in one.timings)


def test_a_task_is_preparing_once_and_then_its_batches() -> None:
    once, answered = compared("", tagi=5.0), compared("", answers=4, metatrain=2.0, tagi=1.0)
    whole = whole_task(answered, once, 10)
    assert whole.timing("metatrain").seconds == (5.0, 10.0, 15.0)
    assert whole.timing("tagi").seconds == (7.5, 15.0, 22.5)
    assert whole.as_json()["cases"][1]["answers_per_second"] == 10 / 15.0


@pytest.mark.parametrize(
    ("preparing", "answer", "prompted", "requests"),
    [(1.0, 0.5, 1.0, 3), (0.9, 0.5, 1.0, 2), (0.0, 0.5, 1.0, 1), (1.0, 1.0, 1.0, None), (1.0, 2.0, 1.0, None)],
)
def test_requests_to_pay(preparing: float, answer: float, prompted: float, requests: int | None) -> None:
    """The first number for which preparing is cheaper, as counting finds it."""
    counted = (n for n in range(1, 1000) if preparing + n * answer < n * prompted)
    assert adapt.requests_to_pay(preparing, answer, prompted) == requests == next(counted, None)


def test_break_even_is_counted_in_requests_not_batches() -> None:
    """Medians: preparing 12, a batch of 4 with the prompt 16, wearing an adapter 8: 2 saved by each request."""
    once = compared("", encoder=1.0, tagi=6.0, hint=6.0)
    answered = compared("", answers=4, metatrain=8.0, tagi=4.0, hint=9.0)
    found = [(one.name, one.batch, one.requests) for one in adapt.break_even(once, answered)]
    assert found == [("tagi", 4, 7), ("hint", 4, None)]


def test_lengths_are_spread_evenly_and_batched_by_length() -> None:
    assert adapt.spread([9, 1, 5], 1) == [5]
    assert adapt.spread([9, 1, 5], 6) == [1, 1, 5, 5, 9, 9]
    assert adapt.spread(range(1, 101), 4) == [13, 38, 63, 88]
    batches = adapt.instructions([1, 2, 4, 5, 5], 2)
    assert [tuple(ids.shape) for ids, _ in batches] == [(2, 2), (2, 5), (1, 5)]
    assert [mask.sum(1).tolist() for _, mask in batches] == [[1, 2], [4, 5], [5]]


def test_memory_is_what_lives_at_once_and_what_stays() -> None:
    """Three products of which each dies before the next, and one more that stays."""
    x, size = torch.ones(100, 100), 100 * 100 * 4

    def work() -> torch.Tensor:
        return ((x @ x) @ x) @ x

    work()
    assert allocated(work) == Allocated(peak=2 * size, kept=size)
    assert allocated(lambda: [x.clone(), x.clone()]) == Allocated(peak=2 * size, kept=2 * size)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_sizes_of_a_task(dtype: torch.dtype, width: int) -> None:
    """Counted value by value: LoRA at q and v of three attentions, I, its mask, and keys and values of I."""
    bench, shape = setup(dtype), small_shape()
    (model,) = bench.models([get("tagi")])
    found = adapt.sizes("tagi", prepared(model, TASK))
    tokens, d, inner = 7 + 2 * 3, shape.d_model, shape.inner_dim
    sites = 2 * (shape.num_layers + 2 * shape.num_decoder_layers)
    lora, memory = sites * RANK * (d + inner), tokens * d
    assert found.adapter == width * (lora + memory) + 8 * tokens
    assert found.keys_values == width * 2 * tokens * (8 * shape.num_layers + inner * shape.num_decoder_layers)
    assert found.folded == width * sites * d * inner
    assert found.prepared == found.adapter + found.keys_values
    values = width * (lora + memory) + tokens
    assert values < found.disk < values + 300 * sites  # names, shapes and scales


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_both_sides_compute_in_the_number_format_asked_for(tmp_path: Path) -> None:
    bench, task = setup(torch.bfloat16), TaskLengths(4, 0, 0, 3, 1)
    full, lora = bench.models([get("tagi"), get("lora_only")])
    base = mixed._written(lora, task, 2, tmp_path)
    sides = [full, lora, bench.transformers(), mixed._load(base, tmp_path, 2, bench.dtype)]
    assert {parameter.dtype for side in sides for parameter in side.parameters()} == {torch.bfloat16}


def test_transformers_wears_the_same_weights() -> None:
    (model,) = setup().models([get("metatrain")])
    theirs = setup().transformers()
    for ours, name in tensor_names(as_t5(model.backbone).shape).items():
        assert torch.equal(theirs.get_parameter(name), model.backbone.get_parameter(ours)), name


def test_a_series_is_one_panel() -> None:
    """Comparisons that belong together by their series, however they are mixed; the others alone, equal titles too."""
    found = [
        compared("warm 1", series=Series("warm", 1), a=1.0, b=2.0),
        compared("alone", a=1.0, b=0.01),
        compared("warm 8", series=Series("warm", 8), a=1.0),
        compared("alone", a=1.0),
    ]
    titles = [[one.title for one in panel] for panel in plot.panels(found)]
    assert titles == [["warm 1", "warm 8"], ["alone"], ["alone"]]


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "1.00"), (0.1, "0.10"), (0.0963, "0.096"), (0.00241, "0.0024")])
def test_shown(ratio: float, text: str) -> None:
    assert shown(ratio) == text


def test_a_picture_holds_every_case(tmp_path: Path) -> None:
    """Names and ratios of bars; names of lines; ends of a range that reaches over more than a decade."""
    warm = [compared(f"{n}", series=Series("warm", n), ours=1.0, theirs=3.0) for n in (1, 64)]
    plot.draw([*warm, compared("store", first=1.0, fast=0.01)], "here and now", tmp_path / "all.svg")
    drawn = (tmp_path / "all.svg").read_text()
    texts = ("warm", "ours", "theirs", "64", "store", "first  1.00", "fast  0.01", "here and now")
    assert [text for text in texts if f"<!-- {text} -->" not in drawn] == []
