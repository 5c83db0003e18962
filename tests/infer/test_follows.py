"""A decoder-only model's input goes on from an instruction that it attends to, and else begins a text of its own."""

import pytest
from tokenizers import processors

from builders import model_config, small_decoder, small_tagi
from tagi import GenerationConfig, Tagi
from tagi.config import PromptConfig
from tagi.data.tokenizers import word_level
from tagi.data.types import Instruction
from tagi.model.adapter import TaskAdapter

TOLD = Instruction("a b c .")


def make(method: str) -> Tagi:
    """Its tokenizer puts a token before a text."""
    tokenizer = word_level(["a", "b", "c", "d", "."])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", first)]
    )
    model = small_tagi(method, backbone=small_decoder())
    config = model_config(model).model_copy(update={"prompt": PromptConfig(style="plain", max_target=4)})
    return Tagi(model, tokenizer, config)


def read(tagi: Tagi, told: Instruction | TaskAdapter) -> list[int]:
    return list(tagi._requests(told, ["d"], None, GenerationConfig())[0].prompts[0])


@pytest.mark.parametrize(("method", "follows"), [("tagi", True), ("lora_only", False), ("hypertuning_lora", False)])
def test_an_input_is_read_by_an_adapter_as_in_training(method: str, follows: bool) -> None:
    tagi = make(method)
    first, d = (tagi.tokenizer.get_vocab()[one] for one in ("<s>", "d"))
    expected = [d] if follows else [first, d]
    adapter = tagi.adapt(TOLD)
    assert tagi.collator.input(TOLD, "d") == expected
    assert read(tagi, TOLD) == read(tagi, adapter) == expected
    assert read(tagi, adapter.without_instruction()) == [first, d]
