"""What a person may look at: norms of the LoRA against whole products, tokens of the instruction in their order."""

import pytest
from test_engine import INPUTS, make

from builders import SMALL_HYPERNETWORK, small_decoder, small_tagi, trained
from tagi import Tagi
from tagi.backbones.lora import delta
from tagi.data.types import Demonstration, Instruction
from tagi.infer import looking

TOLD = Instruction("a b c d .", (Demonstration("e f", "g"),))


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_norms_are_those_of_the_products(family: str) -> None:
    tagi = make("tagi", family=family)
    adapter = tagi.adapt(TOLD)
    found = looking.norms(tagi, adapter)
    assert not found.beyond_shared and found.by_site.keys() == adapter.modules.keys()
    for site, factors in adapter.modules.items():
        assert found.by_site[site] == pytest.approx(float(delta(factors).norm()), rel=1e-4)


def test_norms_are_of_what_a_task_adds_to_a_shared_lora() -> None:
    plain = make("tagi", family="decoder")
    hypernetwork = SMALL_HYPERNETWORK.model_copy(update={"bias": "learned"})
    model = trained(small_tagi("tagi", hypernetwork=hypernetwork, backbone=small_decoder(3)))
    tagi = Tagi(model, plain.tokenizer, plain.config)
    adapter = tagi.adapt(TOLD)
    found = looking.norms(tagi, adapter)
    assert found.beyond_shared
    assert model.hypernetwork is not None
    for site, shared in model.hypernetwork.shared.items():
        added = delta(adapter.modules[site]) - delta(shared)
        assert found.by_site[site] == pytest.approx(float(added.norm().detach()), rel=1e-4)


def test_other_modules_have_no_norm() -> None:
    tagi = make("hypter", family="decoder")
    adapter = tagi.adapt(TOLD)
    assert adapter.modules and not looking.norms(tagi, adapter).by_site


def test_attention_names_the_instruction_s_tokens() -> None:
    tagi = make("tagi", family="decoder").showing(2)
    adapter, answer = tagi.adapt_all([TOLD]), [5, 6]
    found = looking.attention(tagi, adapter, TOLD, INPUTS[1], answer)
    assert found is not None
    said = "".join(text for text, _ in found)
    assert said.split()[:5] == ["a", "b", "c", "d", "."] and "e f" in said
    assert all(0 < weight < 1 for _, weight in found) and sum(weight for _, weight in found) < 1


def test_what_comes_before_the_instruction_is_left_out() -> None:
    tagi = make("tagi", family="decoder", style="tk")
    adapter = tagi.adapt(Instruction("a b ."))
    found = looking.attention(tagi, adapter, Instruction("a b ."), "c", [5])
    assert found is not None and found[0][0].strip() == "a"


def test_encoder_decoders_and_answers_of_nothing_have_none() -> None:
    tagi = make("tagi", family="t5")
    assert looking.attention(tagi, tagi.adapt(TOLD), TOLD, INPUTS[0], [5]) is None
    other = make("tagi", family="decoder")
    assert looking.attention(other, other.adapt(TOLD), TOLD, INPUTS[0], []) is None
