"""How answers attend to an instruction, against what `transformers` says of the whole text."""

import pytest
import torch
from families import VARIANTS, Variant, alone, batch, pair
from transformers import AutoModelForCausalLM

from builders import worst

WEIGHTS = 2e-6  # worst 1.2e-7


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_parity_of_attention_to_the_instruction(variant: Variant) -> None:
    both = pair(variant)
    theirs = AutoModelForCausalLM.from_pretrained(both.folder, attn_implementation="eager").eval()
    told, told_mask = batch([7], seed=0)
    ids, mask = batch([5, 5], seed=1)
    targets, _ = batch([4, 4], seed=2)
    with torch.no_grad():
        prepared = both.ours.prepare(both.ours.read(told, told_mask), {})
        found = both.ours.attention(ids, mask, targets, prepared=prepared, rows=alone(2))
        whole = torch.cat((told.expand(2, -1), ids, targets[:, :-1]), dim=1)
        each = torch.stack(theirs(input_ids=whole, output_attentions=True, use_cache=False).attentions)
    expected = each.mean((0, 2))[:, 7 + 5 - 1 :, :7]
    assert found is not None and found.shape == (2, 4, 7) and worst(found, expected) < WEIGHTS
    if not both.ours.shape.window_layers:  # behind a window most of them are out of sight
        assert found.min() > 0 and float(found.sum(-1).max()) < 1
