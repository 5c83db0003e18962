"""Style `chat`: instruction and input are one turn of a user, and what is read apart joins to the baseline's prompt."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tagi import methods
from tagi.config import PromptConfig
from tagi.data.collate import Collator
from tagi.data.tokenizers import chat_turn
from tagi.data.types import Demonstration, Instruction
from tagi.errors import ConfigError

TEMPLATE = (
    "{{ '<|start|>system\nBe brief.<|end|>\n' }}"
    "{% for message in messages %}{{ '<|start|>' + message.role + '\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
HEAD, TAIL = "<|start|>system\nBe brief.<|end|>\n<|start|>user\n", "<|end|>\n<|start|>assistant\n"


def made(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for every byte and for every mark of a turn, and none around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0} | {letter: number for number, letter in enumerate(letters, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
    found.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    found.chat_template = template
    return found


TOKENIZER = made()
written = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=20).filter(str.strip)
instruction = st.builds(
    Instruction, written, st.lists(st.builds(Demonstration, written, written), max_size=3).map(tuple)
)


def collator(
    method: str, *, demonstrations: int = 2, limit: int = 400, tokenizer: PreTrainedTokenizerFast = TOKENIZER
) -> Collator:
    settings = PromptConfig(style="chat", demonstrations=demonstrations, max_instruction=limit, max_input=limit)
    return Collator(tokenizer, settings, methods.get(method), joined=True)


@given(instruction, written, st.integers(0, 3), st.sampled_from([70, 120, 400]))
def test_instruction_and_input_join_to_the_prompt_of_the_baseline(
    told: Instruction, text: str, demonstrations: int, limit: int
) -> None:
    """As token ids and as strings, whatever is cut."""
    once, every = (
        collator("tagi", demonstrations=demonstrations, limit=limit),
        collator("metatrain", demonstrations=demonstrations, limit=limit),
    )
    parts, prompt = [once.instruction(told), once.input(told, text)], every.input(told, text)
    assert parts[0] + parts[1] == prompt == once._cut(once._prompted(told, text))
    strings = [str(TOKENIZER.decode(ids)) for ids in (*parts, prompt)]
    assert limit < 400 or strings[0] + strings[1] == strings[2]
    assert prompt[-len(TOKENIZER(TAIL)["input_ids"]) :] == TOKENIZER(TAIL)["input_ids"], (
        "the turn is closed in any case"
    )


def test_a_prompt_is_what_the_template_makes_of_both() -> None:
    told = Instruction(" Reverse it. ", (Demonstration("a b", "b a"),))
    content = "Reverse it.\n\nInput: a b\nOutput: b a\n\nInput: c d"
    expected = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert expected == f"{HEAD}{content}{TAIL}"
    assert str(TOKENIZER.decode(collator("metatrain").input(told, " c d "))) == expected
    shown = content.removesuffix("\n\nInput: c d")
    assert str(TOKENIZER.decode(collator("tagi").instruction(told))) == f"{HEAD}{shown}"


def test_an_input_without_an_instruction_is_a_turn_of_its_own() -> None:
    """Also where the method reads the instruction apart and attends to none of it; not where it follows one."""
    alone = TOKENIZER(f"{HEAD}Input: c d{TAIL}")["input_ids"]
    told = Instruction("Reverse it.")
    assert collator("tagi").input(None, "c d") == collator("lora_only").input(told, "c d") == alone
    assert collator("tagi").input(None, "c d", follows=True) == TOKENIZER(f"\n\nInput: c d{TAIL}")["input_ids"]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "prompt.style: chat needs a tokenizer with a chat template, and this one has none"),
        ("{{ raise_exception('no such role') }}", "chat template cannot be rendered (no such role)"),
        ("{% for message in messages %}", "chat template cannot be rendered"),
        ("{{ messages[0].content | upper }}", "does not hold a user's text once, as it is"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not hold a user's text once, as it is"),
    ],
)
def test_a_template_that_is_missing_or_fails_is_named_in_one_sentence(template: str | None, sentence: str) -> None:
    tokenizer = made(template)
    for call in (lambda: chat_turn(tokenizer), lambda: collator("tagi", tokenizer=tokenizer).input(None, "a")):
        with pytest.raises(ConfigError, match=re.escape(sentence)) as raised:
            call()
        assert "\n" not in str(raised.value)
