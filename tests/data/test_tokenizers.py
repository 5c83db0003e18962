import itertools
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tagi.data.sources.c4 import documents, list_files
from tagi.data.tokenizers import unigram, unknown_words, word_level
from tagi.errors import ConfigError

WORDS = ["reverse", "the", "list", "dog", "wolf", ".", ","]
PROSE = [
    "The wolf saw the dog, and the dog saw the wolf.",
    "A list of dogs: the red dog, the old dog and the tired dog.",
    "Reverse the list\nthat holds the words of the wolf!",
]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_level(WORDS)


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    return unigram(PROSE * 20, 36, extra_ids=3)


@pytest.fixture(params=["words", "pieces"])
def either(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def test_special_tokens_have_the_ids_of_t5(either: PreTrainedTokenizerFast) -> None:
    assert either.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (either.pad_token_id, either.eos_token_id, either.unk_token_id) == (0, 1, 2)


def test_word_ids_follow_the_vocabulary(words: PreTrainedTokenizerFast) -> None:
    assert words("Reverse the DOG, wolf list.")["input_ids"] == [3, 4, 6, 9, 7, 5, 8, 1]
    assert words("reverse cat", add_special_tokens=False)["input_ids"] == [3, 2]
    assert len(words) == 3 + len(WORDS)


def test_words_decode_to_single_spaces(words: PreTrainedTokenizerFast) -> None:
    ids = words("dog\n wolf, list.")["input_ids"]
    assert words.decode(ids, skip_special_tokens=True) == "dog wolf , list ."


def test_repeated_words_count_once() -> None:
    assert word_level(["Dog", "wolf", "dog"]).convert_tokens_to_ids(["dog", "wolf"]) == [3, 4]


def test_unknown_words_in_order_and_once(words: PreTrainedTokenizerFast) -> None:
    assert unknown_words(words, "Reverse the Zebra, cat; zebra Zebra dog.") == ["Zebra", "cat", ";", "zebra"]
    assert unknown_words(words, "reverse the list.") == []


def test_unigram_reads_every_word_of_its_text(pieces: PreTrainedTokenizerFast) -> None:
    for text in PROSE:
        ids = pieces(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
        assert pieces.decode(ids, skip_special_tokens=True) == " ".join(text.split())
        assert unknown_words(pieces, text) == []
    assert unknown_words(pieces, "the dog 日本 dog ß") == ["日本", "ß"]


def test_white_space_and_compatibility_forms_are_normalised(pieces: PreTrainedTokenizerFast) -> None:
    plain = pieces("the old dog")["input_ids"]
    assert pieces(" the\n\told \u00a0 dog\n")["input_ids"] == plain
    assert pieces("the \uff4f\uff4c\uff44 dog")["input_ids"] == plain


def test_sentinels_count_down_from_the_last_id(pieces: PreTrainedTokenizerFast) -> None:
    assert len(pieces) == 36 + 3
    assert pieces.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]) == [38, 37, 36]
    assert 38 in pieces("the <extra_id_0> dog")["input_ids"]


@pytest.mark.parametrize(
    ("size", "reason"), [(10, "too small: this text needs"), (5000, "too large: this text yields")]
)
def test_impossible_vocabulary_sizes(size: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary_size {size} is {reason}"):
        unigram(PROSE, size)


def test_rare_characters_stay_out_of_the_alphabet() -> None:
    tokenizer = unigram([*PROSE * 200, "a \u4e2d b"], 36)
    assert unknown_words(tokenizer, "the \u4e2d dog") == ["\u4e2d"]


def test_reloads_offline_with_the_same_ids(
    either: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    either.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(reloaded) == len(either)
    for text in [*PROSE, "unseen zebra <extra_id_1> 日本 </s>", ""]:
        ids = either(text)["input_ids"]
        assert reloaded(text)["input_ids"] == ids
        assert reloaded.decode(ids) == either.decode(ids)


def test_unigram_on_real_text(shared_data: Path) -> None:
    texts = list(itertools.islice(documents(list_files(shared_data / "c4")), 200))
    tokenizer = unigram(texts, 1000)
    assert len(tokenizer) == 1000
    unknown = sum(len(unknown_words(tokenizer, text)) for text in texts)
    assert unknown <= 0.0003 * sum(map(len, texts))  # measured 0.00017
