"""A tokenizer must fit its model: refused when a checkpoint or a backbone is opened, before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from builders import model_config, small_t5, small_tagi
from cli_runs import Run, mistake, write_config
from tagi import Tagi
from tagi.backbones.t5.weights import load_t5, save_t5
from tagi.data import tokenizers
from tagi.data.tokenizers import word_level
from tagi.errors import CheckpointError

WORDS = [f"w{number}" for number in range(20)]
TOKENS = len(WORDS) + 3


def added(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<person>", "<place>"])


def added_special(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"bos_token": "<s>"})


def without_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None


UNFIT: list[tuple[Callable[[PreTrainedTokenizerFast], None], str]] = [
    (added, f"the tokenizer has ids up to {TOKENS + 1}, but the language model embeds those below {TOKENS} only"),
    (added_special, f"the tokenizer has ids up to {TOKENS}, but the language model embeds those below {TOKENS} only"),
    (without_end, "the tokenizer has no end token"),
]


def saved(folder: Path, change: Callable[[PreTrainedTokenizerFast], Any], rows: int = TOKENS) -> Path:
    """A checkpoint whose tokenizer was changed and whose embedding has so many rows; its backbone has both too."""
    tokenizer = word_level(WORDS)
    change(tokenizer)
    save_t5(small_t5(vocab_size=rows), folder / "llm")
    tokenizers.save(tokenizer, folder / "llm")
    model = small_tagi("no_instruction", backbone=load_t5(folder / "llm"))
    tagi = Tagi(model, word_level(WORDS), model_config(model, backbone=str(folder / "llm")))
    tagi.save_pretrained(folder / "ckpt")
    tokenizers.save(tokenizer, folder / "ckpt")
    return folder / "ckpt"


@pytest.mark.parametrize(("change", "sentence"), UNFIT)
def test_an_unfit_tokenizer_is_refused_at_opening(
    tagi: Run, tmp_path: Path, change: Callable[[PreTrainedTokenizerFast], None], sentence: str
) -> None:
    folder = saved(tmp_path, change)
    with pytest.raises(CheckpointError, match=sentence):
        Tagi.from_pretrained(folder)
    mistake(tagi("run", "Sort.", "--checkpoint", folder, "--input", "w1 w2"), str(folder), sentence)


@pytest.mark.parametrize(("change", "sentence"), UNFIT)
def test_an_unfit_tokenizer_is_refused_before_training(
    tagi: Run, tmp_path: Path, change: Callable[[PreTrainedTokenizerFast], None], sentence: str
) -> None:
    saved(tmp_path, change)
    config = write_config(tmp_path, backbone={"path": str(tmp_path / "llm")})
    result = tagi("train", "finetune", "--config", config)
    assert result.code == 2 and result.err.endswith("\n")
    assert sentence in result.err and "Traceback" not in result.err
    assert not list((tmp_path / "runs").glob("*/model.safetensors"))


@pytest.mark.parametrize("rows", [TOKENS, TOKENS + 1, TOKENS + 105])
def test_a_padded_embedding_answers_in_words_of_the_tokenizer(tmp_path: Path, rows: int) -> None:
    """T5's 32,128 rows for 32,100 pieces; what an untrained model says of the rest is no word."""
    tagi = Tagi.from_pretrained(saved(tmp_path, lambda _: None, rows))
    (answer,) = tagi.generate(["w1 w2 w3"], tagi.neutral())
    assert set(answer.split()) <= set(WORDS)


def test_a_tokenizer_without_padding_token_is_read(tmp_path: Path) -> None:
    """GPT-2's has none; rows are padded beside their mask."""

    def without_pad(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = None

    tagi = Tagi.from_pretrained(saved(tmp_path, without_pad))
    assert tagi.generate(["w1", "w2 w3"], tagi.neutral()) == [
        tagi.generate([x], tagi.neutral())[0] for x in ("w1", "w2 w3")
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"model": {"type": "No"}}', "[" * 100_000])
def test_files_of_a_tokenizer_that_are_none(tmp_path: Path, text: str) -> None:
    folder = saved(tmp_path, lambda _: None)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="the tokenizer's files are"):
        Tagi.from_pretrained(folder)
