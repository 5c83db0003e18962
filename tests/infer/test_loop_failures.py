"""One request's failure ends that request alone, and no request waits for others where a place is free."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from test_engine import INPUTS, INSTRUCTIONS, make

from answering import (
    END,
    FAMILIES,
    MOST,
    alone,
    at_random,
    backbone,
    bare,
    collected,
    lively_decoder,
    prompts,
    requests,
    together,
)
from builders import random_lora, small_tagi
from tagi.backbones.base import Prepared
from tagi.backbones.sites import Factors
from tagi.errors import InputError
from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.infer.search import GenerationConfig, Limits
from tagi.infer.tasks import Request
from tagi.model.adapter import TaskAdapter
from tagi.model.tagi import TagiModel, neutral


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> TagiModel:
    return small_tagi("metatrain", backbone=backbone(request.param))


def adapter(model: TagiModel, *, rank: int = 3, scale: float = 2.0) -> TaskAdapter:
    modules = random_lora(model.backbone, 1, seed=1, rank=rank, scale=scale)
    return replace(neutral(model.backbone, 1), modules=modules)


def lora(model: TagiModel, *, rank: int = 3, scale: float = 2.0) -> Prepared:
    return model.prepare(adapter(model, rank=rank, scale=scale))


def ended(steps: Sequence[Tokens]) -> dict[int, Exception | None]:
    return {step.number: step.error for step in steps if step.done}


def raising(tokens: Sequence[int]) -> bool:
    if len(tokens) == 3:
        raise ZeroDivisionError("a stop function of a caller's")
    return False


@pytest.mark.parametrize("beams", [1, 3])
def test_a_failing_request_ends_alone(model: TagiModel, beams: int) -> None:
    """A stop function that raises, prompts that no model can read, an adapter that is no numbers; six others answer."""
    texts = prompts(10, seed=7)
    each = requests(bare(model), texts, GenerationConfig(beams=beams))
    spoilt = adapter(model)
    # At v: torch's fused attention makes finite weights of queries that are no numbers on processors with AVX-512.
    site, factors = next((site, own) for site, own in spoilt.modules.items() if site.place == "v")
    modules = {**spoilt.modules, site: Factors(factors.a * torch.nan, factors.b, factors.scale)}
    each[1] = replace(each[1], limits=replace(each[1].limits, ends=(), stops=raising))
    each[3] = replace(each[3], prompts=[[]])
    each[5] = replace(each[5], prompts=[[9, 10_000]])
    each[8] = replace(each[8], prepared=model.prepare(replace(spoilt, modules=modules)))
    steps = list(Scheduler(model.backbone, 4).run(each))
    errors = {number: error for number, error in ended(steps).items() if error is not None}
    assert sorted(errors) == [1, 3, 5, 8] and len(ended(steps)) == 10
    assert isinstance(errors[1], ZeroDivisionError) and "stop function" in str(errors[1])
    for number, sentence in ((3, "no tokens"), (5, "none of the language model's 48"), (8, "no finite numbers")):
        assert isinstance(errors[number], InputError) and sentence in str(errors[number])
    tokens = collected(steps, 10)
    for number in {*range(10)} - errors.keys():
        assert tokens[number] == alone(model, each[number]) != []


def test_a_failing_request_of_a_batch_of_equals_ends_alone(model: TagiModel) -> None:
    """Also where only one row of one adapter's batch fails, in the middle of its answer."""
    each = requests(bare(model), prompts(6, seed=8), ends=())  # nobody ends before
    each[2] = replace(each[2], limits=replace(each[2].limits, stops=raising))
    steps = list(Scheduler(model.backbone, 6).run(each))
    assert [number for number, error in ended(steps).items() if error is not None] == [2]
    tokens = collected(steps, 6)
    assert len(tokens[2]) == 2
    assert all(tokens[n] == alone(model, each[n]) and len(tokens[n]) == MOST for n in (0, 1, 3, 4, 5))


@pytest.mark.parametrize("positions", [{}, {"rotary": None, "learned": {}}], ids=["rotary", "learned"])
def test_prompts_beyond_the_positions_end_alone_and_answers_within_them(positions: dict[str, object]) -> None:
    """Of a model with 64 positions: 64 tokens are refused, 60 leave room for 4, and others go on beyond that."""
    model = small_tagi("metatrain", backbone=lively_decoder(1, max_positions=64, **positions))
    lengths, limits = [64, 60, 5, 30, 63], Limits((), 20)
    each = [Request(i, [[9] * length], bare(model), 0, "", limits) for i, length in enumerate(lengths)]
    steps = list(Scheduler(model.backbone, 5).run(each))
    errors = ended(steps)
    assert "64 tokens, and the language model has 64 positions" in str(errors.pop(0)) and set(errors.values()) == {None}
    tokens = collected(steps, 5)
    assert [len(one) for one in tokens] == [0, 4, 20, 20, 1]
    assert all(tokens[n] == alone(model, each[n]) for n in (1, 2, 3, 4))


def test_finished_rows_near_the_last_position_break_no_others() -> None:
    """Answers that end where the positions do, in a batch of others that come and go; instructions take positions."""
    model, rng = small_tagi("metatrain", backbone=lively_decoder(1, max_positions=32)), Random(4)
    read = model.backbone.read(torch.tensor([prompts(1, 5)[0][:7], [9] * 7]), torch.ones(2, 7, dtype=torch.bool))
    tasks = [bare(model), model.backbone.prepare(read, {})]
    each = []
    for number in range(40):
        task, place = rng.choice(tasks), rng.randrange(2)
        room = 31 - 7 * (task is tasks[1])
        text = [rng.randrange(8, 48) for _ in range(room if number % 3 == 0 else rng.randint(1, room))]
        each.append(Request(number, [text], task, min(place, task.tasks - 1), "", Limits((END,), 60)))
    for eager in (True, False):
        steps = list(at_random(model, each, 8, rng, eager=eager))
        assert set(ended(steps).values()) == {None} and len(ended(steps)) == 40
        assert collected(steps, 40) == [alone(model, one) for one in each]
    lengths = [one.told + len(one.prompts[0]) + len(alone(model, one)) for one in each]
    assert max(lengths) == 32 and sum(length == 32 for length in lengths) > 10


def test_beams_of_different_width_and_adapters_of_different_sizes_share_a_loop(model: TagiModel) -> None:
    """Every request equals itself alone: 1 to 4 beams, 1 or 2 prompts, no LoRA or LoRA of two ranks and scales."""
    rng, texts = Random(9), prompts(48, seed=9)
    tasks = [bare(model), lora(model), lora(model, rank=5), lora(model, scale=1.0)]
    each = [
        Request(
            number,
            texts[2 * number : 2 * number + rng.randint(1, 2)],
            rng.choice(tasks),
            0,
            "",
            Limits((END,), rng.choice((3, MOST))),
            GenerationConfig(beams=rng.randint(1, 4)),
        )
        for number in range(24)
    ]
    found = collected(at_random(model, each, 8, rng), 24)
    assert found == [alone(model, one) for one in each]
    assert len({tuple(tokens) for tokens in found}) > 10


@pytest.mark.parametrize("eager", [True, False])
def test_a_free_place_is_taken_at_once(model: TagiModel, eager: bool) -> None:
    """Of 16 places one is free: the request that waits begins with the next step, not when a quarter is free, unless
    that is what is asked for."""
    each = requests(bare(model), prompts(17, seed=10), ends=(), max_new_tokens=12)
    each[4] = replace(each[4], limits=Limits((), 3))
    order: list[tuple[int, int]] = []
    counts = [0] * 17
    for step in Scheduler(model.backbone, 16, eager=eager).run(each):
        counts[step.number] += len(step.new)
        order.append((step.number, counts[step.number]))
    assert counts == [12] * 4 + [3] + [12] * 12
    begun, third, fourth = order.index((16, 1)), order.index((4, 3)), order.index((0, 5))
    if eager:
        assert third < begun < fourth, "it begins after the third step of the others and before their fifth"
    else:
        assert begun > order.index((0, 12))


def test_requests_come_and_are_cancelled_while_others_run(model: TagiModel) -> None:
    """Running or waiting, nothing more is said of them, and their places are free; the others answer as alone."""
    each = requests(bare(model), prompts(12, seed=11), ends=())
    expected = [alone(model, one) for one in each]
    scheduler, steps = Scheduler(model.backbone, 4), []
    for request in each[:6]:
        scheduler.submit(request)  # 4 and 5 wait
    steps += scheduler.step()
    scheduler.cancel(1)
    scheduler.cancel(5)
    scheduler.cancel(99)  # of which nobody knows
    said = len(collected(steps, 12)[1])
    for request in each[6:]:
        scheduler.submit(request)
        steps += scheduler.step()
    scheduler.cancel(0)
    while not scheduler.idle:
        steps += scheduler.step()
    scheduler.cancel(2)  # done already
    assert scheduler.step() == [] and scheduler.idle
    tokens = collected(steps, 12)
    assert sorted(ended(steps)) == sorted({*range(12)} - {0, 1, 5})
    assert all(tokens[n] == expected[n] for n in ended(steps))
    assert len(tokens[1]) == said and tokens[5] == []
    assert 0 < len(tokens[0]) < MOST and tokens[0] == expected[0][: len(tokens[0])]
    assert together(model, each) == expected, "another loop knows nothing of it"


def test_a_cancelled_request_gives_its_place_to_one_that_waits(model: TagiModel) -> None:
    each = requests(bare(model), prompts(2, seed=12), ends=())
    scheduler = Scheduler(model.backbone, 1)
    for request in each:
        scheduler.submit(request)
    assert {step.number for step in scheduler.step()} == {0}
    scheduler.cancel(0)
    assert {step.number for step in scheduler.step()} == {1}


def test_errors_reach_the_caller_once_the_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    tagi = make()
    written, done = tagi.adapt(INSTRUCTIONS[0]), []
    expected = tagi.generate(INPUTS, written)
    encode = type(tagi.collator).prompts

    def spoilt(self: object, told: object, text: str, **options: object) -> list[list[int]]:
        return [[10_000]] if text == INPUTS[1] else encode(self, told, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tagi.collator), "prompts", spoilt)
    with pytest.raises(InputError, match="input 2: the prompt has a token that is none of"):
        tagi.answer(written, INPUTS, progress=lambda count, whole: done.append((count, whole)))
    assert done == [(number, 5) for number in range(1, 6)]
    found = tagi.answer(written, INPUTS, keep_errors=True)
    assert [one.text for one in found] == [expected[0], "", *expected[2:]]
    assert [one.error is not None for one in found] == [False, True, False, False, False] and found[
        1
    ].finish_reason is None
    with pytest.raises(InputError, match="the prompt has a token that is none of"):
        list(tagi.stream(written, INPUTS[1]))
