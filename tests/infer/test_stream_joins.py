"""The pieces of a stream join to exactly the answer, whatever the tokenizer, the tokens and the stop strings."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from answering import FAMILIES, backbone
from builders import model_config, small_tagi
from tagi import GenerationConfig, Tagi
from tagi.config import PromptConfig
from tagi.infer.answers import AnswerTexts
from tagi.model.tagi import neutral

SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}
PIECES = [
    "▁did",
    "▁n",
    "'",
    "t",
    "▁go",
    "▁",
    ",",
    "▁yes",
    "x",
    ".",
    "▁'",
    "s",
    "▁.",
    "▁m",
    "re",
    "ve",
    "▁'s",
    "\n",
    "停",
    "▁ ",
]


def finished(tokenizer: Tokenizer, *, clean: bool = False, added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=clean,
    )
    for text in added:
        made.add_tokens(AddedToken(text, normalized=False))
    return made


def pieces(clean: bool = False, added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """As SentencePiece writes them, with leading spaces."""
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in SPECIAL), *((p, -1.0) for p in PIECES)], unk_id=2))
    tokenizer.decoder = decoders.Metaspace()
    return finished(tokenizer, clean=clean, added=added)


def bytelevel() -> PreTrainedTokenizerFast:
    """One token for every byte, as GPT-2's: a character may take four, and many sequences are no text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = SPECIAL | {letter: number + 3 for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.ByteLevel()
    return finished(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Words and bytes, as Llama's: a run of bytes is text only if all of it is."""
    names = [*SPECIAL, *(f"<0x{number:02X}>" for number in (0x61, 0xE5, 0x81, 0x9C, 0xF0, 0x9F, 0x0A)), "▁a", "b", "▁"]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(tokenizer)


def word_pieces() -> PreTrainedTokenizerFast:
    names = [*SPECIAL, "did", "##n", "'", "##t", "n", ".", ",", "##'", "s", "re"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return finished(tokenizer, clean=True)


def words() -> PreTrainedTokenizerFast:
    names = [*SPECIAL, "did", "n", "'", "t", "n't", ".", ",", "'s", "a"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    return finished(tokenizer, clean=True)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "pieces": pieces,
    "pieces, cleaned": lambda: pieces(clean=True),
    "pieces and a line break": lambda: pieces(added=["\n\n", " \t "]),
    "bytes": bytelevel,
    "words and bytes": byte_fallback,
    "word pieces": word_pieces,
    "words": words,
}
TOKENIZERS = {name: make() for name, make in KINDS.items()}
STOPS = ["停", "\n", "n't", "did n", " ", "t", "' ", "n '", "\n\n", "a b", "\ufffd", ".", "s re", "yes did"]


def streamed(texts: AnswerTexts, tokens: Sequence[int], stop: Sequence[str]) -> None:
    """As the engine streams: each piece goes on where the last one ended, and the answer is what they join to."""
    shown = ""
    for count in range(1, len(tokens) + 1):
        read = tokens[:count]
        last = count == len(tokens) or texts.stopped(read, stop)
        now = texts.answer(read, "end", stop).text if last else texts.settled(read, stop)
        assert now.startswith(shown) or (shown.startswith(now) and not last), (shown, now)
        shown = max(shown, now, key=len)  # clean-up may take away a space that was counted before
        if last:
            break


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=150)
@given(data=st.data(), stop=st.lists(st.sampled_from(STOPS), max_size=2))
def test_stream_joins_for_any_tokens(name: str, data: st.DataObject, stop: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=14))
    streamed(AnswerTexts(tokenizer), tokens, stop)


@given(text=st.text(min_size=1, max_size=12), stop=st.lists(st.text(min_size=1, max_size=3), max_size=2))
@example(text="ab 停c", stop=["b 停"])
@example(text=" \n 停停 ", stop=["停 "])
def test_stream_joins_for_any_text_in_bytes(text: str, stop: list[str]) -> None:
    """Text that is whole at its end is whole in the answer, and characters come only when all their bytes have."""
    tokenizer = TOKENIZERS["bytes"]
    table = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = "".join(piece for piece, _ in table.pre_tokenize_str(text))
    tokens = [tokenizer.get_vocab()[letter] for letter in letters]
    texts = AnswerTexts(tokenizer)
    streamed(texts, tokens, stop)
    assert texts.answer(tokens, "end", ()).text == text.strip()
    assert all("\ufffd" not in texts.settled(tokens[:count], stop) or "\ufffd" in text for count in range(len(tokens)))


@pytest.mark.parametrize("clean", [False, True])
def test_stream_joins_where_spaces_are_cleaned_up(clean: bool) -> None:
    """The longest way back: three spaces of "n ' t" go at its last token."""
    tokenizer = pieces(clean=clean)
    vocabulary = tokenizer.get_vocab()
    tokens = [vocabulary[piece] for piece in ("▁yes", "▁did", "▁n", "▁'", "▁", "t", "▁go", "▁", ",")]
    texts = AnswerTexts(tokenizer)
    streamed(texts, tokens, ())
    assert texts.answer(tokens, "end", ()).text == ("yes didn't go," if clean else "yes did n ' t go ,")
    assert texts.settled([*tokens, *tokens[:1] * 3], ()).startswith("yes did"), "what cannot change is shown"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", KINDS)
def test_stream_joins_in_the_engine(name: str, family: str) -> None:
    """Random models, greedy, sampled and by beams: the stream of an answer against the answer."""
    tokenizer = TOKENIZERS[name]
    model = small_tagi("no_instruction", backbone=backbone(family, 3, vocab_size=len(tokenizer)))
    settings = PromptConfig(style="plain", max_target=24)
    tagi = Tagi(model, tokenizer, model_config(model).model_copy(update={"prompt": settings}))
    bare, found = neutral(model.backbone, 1), set()
    ways = [GenerationConfig(), GenerationConfig(beams=3)]
    ways += [GenerationConfig(temperature=2.0, seed=seed) for seed in range(8)]
    for how in ways:
        for stop in ((), ("t", "停"), ("\n", " ")):
            generation = replace(how, stop=stop)
            (answer,) = tagi.answer(bare, ["x"], generation=generation)
            parts = list(tagi.stream(bare, "x", generation=generation))
            assert "".join(parts) == answer.text and all(parts)
            found.add((answer.text, len(parts) > 1))
    assert len(found) > 5 and any(several for _, several in found)
