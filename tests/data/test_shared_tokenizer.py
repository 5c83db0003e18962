"""One tokenizer for many threads: limits are arguments, never a switch inside of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine import WORDS, make
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tagi.config import PromptConfig
from tagi.data import tokenizers
from tagi.data.collate import Collator, Reading
from tagi.data.tokenizers import encode, word_level
from tagi.data.types import Instruction
from tagi.errors import InputError
from tagi.methods import get

TEMPLATES = {
    "behind": "$A </s>",
    "before": "<s> $A",
    "around": "<s> $A </s>",
    "two behind": "$A <s> </s>",
    "none": "$A",
}


def templated(template: str, side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer that puts its special tokens there, and cuts at that side."""
    tokenizer = word_level([*WORDS, "."])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    signs = [(sign, tokenizer.convert_tokens_to_ids(sign)) for sign in ("<s>", "</s>") if sign in template]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=signs)
    tokenizer.truncation_side = side
    return tokenizer


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(
    st.lists(st.sampled_from([*WORDS[:4], "<s>", "</s>", "zebra"]), max_size=8),
    st.integers(2, 10),
    st.booleans(),
)
def test_a_shared_tokenizer_s_ids_are_cut_as_the_library_cuts(
    template: str, side: str, words: list[str], limit: int, special: bool
) -> None:
    """Special tokens in the text itself are content, wherever they stand."""
    tokenizer, text = templated(TEMPLATES[template], side), " ".join(words)
    expected = tokenizer(text, truncation=True, max_length=limit, add_special_tokens=special)["input_ids"]
    whole = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert read(tokenizer, text, limit, special) == expected
    assert read(tokenizer, text, len(whole), special) == whole


def read(tokenizer: PreTrainedTokenizerFast, text: str, limit: int, special: bool) -> list[int]:
    """A text as a model reads it, or its tokens alone."""
    if not special:
        return encode(tokenizer, text, limit)
    return Collator(tokenizer, PromptConfig(), get("tagi"))._cut(Reading(((text, limit),)))


def test_threads_with_different_limits_share_a_tokenizer() -> None:
    """Many short calls of all kinds at once: no call sees another's limit, none is refused by the tokenizer."""
    tokenizer = word_level([*WORDS, "."])
    long = " ".join(WORDS) * 3
    told = Instruction(long)

    def prompts(number: int) -> bool:
        limits = PromptConfig(style="plain", max_instruction=5 + number, max_input=3 + number, max_target=4 + number)
        collator = Collator(tokenizer, limits, get("metatrain"))
        once = Collator(tokenizer, limits, get("tagi"))
        for _ in range(300):
            lengths = [
                len(collator.target(long)),
                len(collator.input(None, long)),
                len(once.instruction(told)),
                len(collator.input(told, long)),
                collator.length(Reading(((long, 5 + number),))),
            ]
            if lengths != [4 + number, 3 + number, 5 + number, 8 + 2 * number, len(tokenizer(long)["input_ids"])]:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(prompts, range(8)))


def test_a_shared_tokenizer_s_state_stays(tmp_path: Path) -> None:
    """Files may ask for truncation and padding; they are switched off when a tokenizer is opened, and stay off."""
    tokenizer = word_level([*WORDS, "."])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.save_pretrained(tmp_path)
    opened = tokenizers.load(tmp_path)
    assert isinstance(opened, PreTrainedTokenizerFast)
    tagi = make(max_input=3)
    for one in (opened, tagi.tokenizer):
        assert isinstance(one, PreTrainedTokenizerFast)
        assert len(encode(one, "a b c d e f")) == 6 and len(encode(one, "a b c d e f", 3)) == 3
        tagi.generate(["a b c d e f"], tagi.adapt("a b c ."))
        assert one.backend_tokenizer.truncation is None and one.backend_tokenizer.padding is None


@pytest.mark.parametrize("text", ["a \ud83d b", "\udc80", "a" * 50 + "\udfff"])
def test_half_a_character_is_refused_in_one_sentence(text: str) -> None:
    tokenizer: PreTrainedTokenizerBase = word_level(WORDS)
    place = next(number for number, sign in enumerate(text, 1) if "\ud800" <= sign <= "\udfff")
    with pytest.raises(InputError, match=rf"character {place} is half of a surrogate pair \(\\u[d][0-9a-f]{{3}}\)"):
        encode(tokenizer, text, 5)
