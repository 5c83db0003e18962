"""Exported adapters in `peft`, which computes in fp32 what our engine does."""

from typing import Any

import pytest
import torch
from cases import MOST, Answered, Case, changed, compare, ended, report, tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # peft's
]
BOUND = 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alone", "activated"])
def test_engines_peft_gives_our_40_answers(name: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    assert changed(case) >= 30
    assert [tokenizer()(text)["input_ids"] for text in case.texts] == case.prompts
    base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(case.folder / "peft")).eval()
    found = compare(case.ours, Answered([answer(model, one, case) for one in case.prompts], scores(model, case)))
    report(f"peft, {name}", found)
    assert found.differ == 0 and found.worst < BOUND


def answer(model: Any, prompt: list[int], case: Case) -> list[int]:
    """The greedy answer to one prompt."""
    ids = torch.tensor([prompt])
    whole = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MOST,
        eos_token_id=case.ends,
        pad_token_id=case.ends[0],
    )
    return ended(whole[0, len(prompt) :].tolist(), case.ends)


def scores(model: Any, case: Case) -> list[list[float]]:
    """Log-likelihood of every token of our answers."""
    found = []
    for prompt, own in zip(case.prompts, case.ours.answers, strict=True):
        logits = model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(own, dtype=torch.long)[:, None]).flatten().tolist())
    return found
