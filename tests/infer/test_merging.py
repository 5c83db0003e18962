"""A task that is kept has its LoRA merged once, and no more than one task has."""

import torch
from test_engine import INSTRUCTIONS, make

from tagi.backbones.base import Prepared
from tagi.backbones.sites import Factors
from tagi.infer.merging import MERGED_FROM


def merged(prepared: Prepared) -> bool:
    """Whether the LoRA of every target module stands in the weights."""
    (answer,) = {isinstance(own, Factors) and own.merged is not None for own in prepared.modules.values()}
    return answer


@torch.inference_mode()
def test_inputs_that_come_one_by_one_are_merged_from_the_third_on() -> None:
    tagi = make("lora_only", family="decoder")
    adapter = tagi.adapt(INSTRUCTIONS[0])
    each = [tagi.prepare(adapter, 1) for _ in range(MERGED_FROM + 1)]
    assert [merged(one) for one in each] == [False] * (MERGED_FROM - 1) + [True, True]
    assert each[-1] is each[-2], "it is merged once"
    assert merged(tagi.prepare(tagi.adapt(INSTRUCTIONS[1]), MERGED_FROM)), "or at once where they come together"


@torch.inference_mode()
def test_only_the_last_task_stays_merged() -> None:
    tagi = make("tagi", family="decoder")
    adapter, other = tagi.adapt(INSTRUCTIONS[0]), tagi.adapt(INSTRUCTIONS[1])
    kept = tagi.prepare(adapter, MERGED_FROM)
    for apart in (adapter.without_modules(), tagi.adapt_all(INSTRUCTIONS), tagi.neutral()):
        tagi.prepare(apart, MERGED_FROM)
        assert tagi.prepare(adapter, 1) is kept, "what cannot be merged takes nobody's place"
    assert not merged(tagi.prepare(other, 1))
    assert not merged(tagi.prepare(adapter, 1)), "the other's first input took its place"


def test_a_task_answers_the_same_before_and_after() -> None:
    tagi = make("tagi", family="decoder")
    task = tagi.task(INSTRUCTIONS[0])
    answers = [task("b c d") for _ in range(MERGED_FROM + 1)]
    assert len(set(answers)) == 1 and answers[0]
    assert answers[0] != tagi.generate(["b c d"], tagi.neutral())[0]
