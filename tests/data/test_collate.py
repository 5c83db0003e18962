"""From rows to token ids: where a target ends."""

import pytest
import torch

from tagi import methods
from tagi.config import PromptConfig
from tagi.data.collate import IGNORE, Collator, assemble
from tagi.data.tokenizers import word_level


@pytest.mark.parametrize(("words", "ends"), [(1, True), (3, True), (4, False), (5, False), (40, False)])
def test_a_target_has_its_end_token_where_all_of_it_is_there(words: int, ends: bool) -> None:
    """Of four tokens at most, three words and their end fit; four words are cut off from it."""
    tokenizer = word_level(["one"])
    collator = Collator(tokenizer, PromptConfig(max_target=4), methods.get("tagi"))
    one, end = tokenizer.convert_tokens_to_ids("one"), tokenizer.eos_token_id
    assert collator.target("one " * words) == [one] * min(words, 4) + [end] * ends


def test_targets_of_padding_are_ids_again_and_labels_stay() -> None:
    batch = assemble([[4]], [[5], [6]], [[7, 8, 1], [9]], torch.zeros(2, dtype=torch.long))
    assert batch.labels.tolist() == [[7, 8, 1], [9, IGNORE, IGNORE]]
    assert batch.target_ids.tolist() == [[7, 8, 1], [9, 0, 0]]
    assert batch.labels.tolist() == [[7, 8, 1], [9, IGNORE, IGNORE]]
    assert (batch.targets, batch.tokens) == (4, 7)
    assert batch.input_mask.dtype == torch.bool
