"""One request's failure ends that request alone, and no request waits for others where a place is free."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from tagi.infer.decode import Request, Tokens, decode
from test_decode import END, MOST, collected, lively, prompts
from test_engine import INPUTS, INSTRUCTIONS, make

from builders import random_lora, small_causal, small_t5, small_tagi
from tagi.backbones.base import Prepared
from tagi.backbones.language_model import as_t5
from tagi.backbones.sites import Factors
from tagi.errors import InputError
from tagi.infer.answers import at_hand
from tagi.infer.search import GREEDY, GenerationConfig, Limits
from tagi.model.tagi import TagiModel, neutral


@pytest.fixture(scope="module")
def model() -> TagiModel:
    return small_tagi("metatrain", backbone=lively(small_t5(5)))


def lora(model: TagiModel, *, rank: int = 3, scale: float = 2.0) -> Prepared:
    adapter = neutral(model.backbone, 1)
    return model.prepare(
        replace(adapter, modules=random_lora(as_t5(model.backbone), 1, seed=1, rank=rank, scale=scale))
    )


def plain(model: TagiModel, texts: Sequence[Sequence[int]], decoding: GenerationConfig = GREEDY) -> list[Request]:
    prepared = model.prepare(neutral(model.backbone, 1))
    return [Request(i, [text], prepared, 0, "", Limits(END, MOST), decoding) for i, text in enumerate(texts)]


def ended(steps: Sequence[Tokens]) -> dict[int, Exception | None]:
    return {step.number: step.error for step in steps if step.done}


def alone(model: TagiModel, request: Request) -> list[int]:
    return collected(decode(model, at_hand([replace(request, number=0)]), 1), 1)[0]


def raising(tokens: Sequence[int]) -> bool:
    if len(tokens) == 3:
        raise ZeroDivisionError("a stop function of a caller's")
    return False


@pytest.mark.parametrize("beams", [1, 3])
def test_a_failing_request_ends_alone(model: TagiModel, beams: int) -> None:
    """A stop function that raises, prompts that no model can read, an adapter that is no numbers; six others answer."""
    texts = prompts(10, seed=7)
    each = plain(model, texts, GenerationConfig(beams=beams))
    spoilt = lora(model).adapter
    site, factors = next(iter(spoilt.modules.items()))
    modules = {**spoilt.modules, site: Factors(factors.a * torch.nan, factors.b, factors.scale)}
    each[1] = replace(each[1], limits=replace(each[1].limits, stops=raising))
    each[3] = replace(each[3], prompts=[[]])
    each[5] = replace(each[5], prompts=[[9, 10_000]])
    each[8] = replace(each[8], prepared=model.prepare(replace(spoilt, modules=modules)))
    steps = list(decode(model, at_hand(each), 4))
    errors = {number: error for number, error in ended(steps).items() if error is not None}
    assert sorted(errors) == [1, 3, 5, 8] and len(ended(steps)) == 10
    assert isinstance(errors[1], ZeroDivisionError) and "stop function" in str(errors[1])
    for number, sentence in ((3, "no tokens"), (5, "none of the language model's 48"), (8, "no finite numbers")):
        assert isinstance(errors[number], InputError) and sentence in str(errors[number])
    tokens = collected(iter(steps), 10)
    for number in {*range(10)} - errors.keys():
        assert tokens[number] == alone(model, each[number]) != []


def test_a_failing_request_of_a_batch_of_equals_ends_alone(model: TagiModel) -> None:
    """Also where only one row of one adapter's batch fails, in the middle of its answer."""
    each = plain(model, prompts(6, seed=8))
    each = [replace(one, limits=Limits(-1, MOST)) for one in each]  # nobody ends before
    each[2] = replace(each[2], limits=replace(each[2].limits, stops=raising))
    steps = list(decode(model, at_hand(each), 6))
    assert [number for number, error in ended(steps).items() if error is not None] == [2]
    tokens = collected(iter(steps), 6)
    assert len(tokens[2]) == 2
    assert all(tokens[n] == alone(model, each[n]) and len(tokens[n]) == MOST for n in (0, 1, 3, 4, 5))


def test_prompts_beyond_the_positions_end_alone_and_answers_within_them() -> None:
    """Of a model with 64 positions: 64 tokens are refused, 60 leave room for 4, and others go on beyond that."""
    causal = small_tagi("decoder_only", backbone=small_causal(1, architecture="opt"))
    prepared = causal.prepare(neutral(causal.backbone, 1))
    lengths, limits = [64, 60, 5, 30], Limits(-1, 20)
    each = [Request(i, [[9] * length], prepared, 0, "", limits) for i, length in enumerate(lengths)]
    steps = list(decode(causal, at_hand(each), 4))
    errors = ended(steps)
    assert "64 tokens, and the language model has 64 positions" in str(errors.pop(0)) and set(errors.values()) == {None}
    tokens = collected(iter(steps), 4)
    assert [len(one) for one in tokens] == [0, 4, 20, 20]
    assert all(tokens[n] == alone(causal, each[n]) for n in (1, 2, 3))


def test_beams_of_different_width_and_adapters_of_different_sizes_share_a_loop(model: TagiModel) -> None:
    """Every request equals itself alone: 1 to 4 beams, 1 or 2 prompts, no LoRA or LoRA of two ranks and scales."""
    rng, texts = Random(9), prompts(48, seed=9)
    worn = [model.prepare(neutral(model.backbone, 1)), lora(model), lora(model, rank=5), lora(model, scale=1.0)]
    each = [
        Request(
            number,
            texts[2 * number : 2 * number + rng.randint(1, 2)],
            rng.choice(worn),
            0,
            "",
            Limits(END, rng.choice((3, MOST))),
            GenerationConfig(beams=rng.randint(1, 4)),
        )
        for number in range(24)
    ]
    left = iter(each)

    def waiting(free: int, idle: bool) -> list[Request]:
        return [one for _, one in zip(range(rng.randint(int(idle), free)), left, strict=False)]

    found = collected(decode(model, waiting, 8), 24)
    assert found == [alone(model, one) for one in each]
    assert len({tuple(tokens) for tokens in found}) > 10


def test_a_free_place_is_taken_at_once(model: TagiModel) -> None:
    """Of 16 places one is free: the request that waits begins with the next step, not when a quarter is free."""
    each = [replace(one, limits=Limits(-1, 12)) for one in plain(model, prompts(17, seed=10))]
    each[4] = replace(each[4], limits=Limits(-1, 3))
    left = iter(each)
    order: list[tuple[int, int]] = []
    counts = [0] * 17
    for step in decode(model, lambda free, idle: [one for _, one in zip(range(free), left, strict=False)], 16):
        counts[step.number] += len(step.new)
        order.append((step.number, counts[step.number]))
    assert counts == [12] * 4 + [3] + [12] * 12
    begun, third, fourth = order.index((16, 1)), order.index((4, 3)), order.index((0, 5))
    assert third < begun < fourth, "it begins after the third step of the others and before their fifth"


def test_errors_reach_the_caller_once_the_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    tagi = make()
    adapter, done = tagi.adapt(INSTRUCTIONS[0]), []
    expected = tagi.generate(INPUTS, adapter)
    encode = type(tagi.collator).input

    def spoilt(self: object, told: object, text: str) -> list[int]:
        return [10_000] if text == INPUTS[1] else encode(self, told, text)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tagi.collator), "input", spoilt)
    with pytest.raises(InputError, match="input 2: the prompt has a token that is none of"):
        tagi.answer(adapter, INPUTS, progress=lambda count, whole: done.append((count, whole)))
    assert done == [(number, 5) for number in range(1, 6)]
    found = tagi.answer(adapter, INPUTS, keep_errors=True)
    assert [one.text for one in found] == [expected[0], "", *expected[2:]]
    assert [one.error is not None for one in found] == [False, True, False, False, False] and found[1].reason is None
    with pytest.raises(InputError, match="the prompt has a token that is none of"):
        list(tagi.stream(adapter, INPUTS[1]))
