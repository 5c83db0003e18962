"""Exported adapters in `peft`, which computes in fp32 what our engine does."""

from typing import Any

import pytest
import torch
from cases import BARE, MOST, Case, changed, compare, report, tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # peft's
]
BOUND = 5e-5
"""Nats per token; worst 2.1e-6."""


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alone", "activated"])
def test_engines_peft_gives_our_40_answers(name: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    assert changed(case) >= 25
    assert [tokenizer()(text)["input_ids"] for text in case.texts] == case.prompts
    base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(case.folder / "peft")).eval()
    found = {"answers": [answer(model, one, case, MOST) for one in case.prompts], "scores": scores(model, case)}
    with model.disable_adapter():
        found["bare"] = [answer(model, one, case, BARE) for one in case.prompts]
    compared = compare(case, found)
    report(f"peft, {name}", compared)
    assert compared.differ == 0 and compared.bare == 0 and compared.worst < BOUND


def answer(model: Any, prompt: list[int], case: Case, most: int) -> list[int]:
    """The greedy answer to one prompt."""
    ids = torch.tensor([prompt])
    whole = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=case.ends,
        pad_token_id=case.ends[0],
    )
    return whole[0, len(prompt) :].tolist()


def scores(model: Any, case: Case) -> list[list[float]]:
    """Log-likelihood of every token of our answers."""
    found = []
    for prompt, own in zip(case.prompts, case.answers, strict=True):
        logits = model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(own, dtype=torch.long)[:, None]).flatten().tolist())
    return found
