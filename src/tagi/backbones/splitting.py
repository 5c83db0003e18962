"""How byte-level tokenizers split text before they merge bytes, by llama.cpp's names (`tokenizer.ggml.pre`)."""

from collections.abc import Callable

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes() -> PreTokenizer:
    """GPT-2's own splitting."""
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _digits() -> PreTokenizer:
    """Every digit by itself, then as GPT-2."""
    return Sequence([Digits(individual_digits=True), _bytes()])


def _by(numbers: str) -> Callable[[], PreTokenizer]:
    """Llama 3's splitting, which Qwen2 shares but for `numbers`."""

    def split() -> PreTokenizer:
        pieces = Split(Regex(_WORDS + numbers + _REST), behavior="isolated")
        return Sequence([pieces, ByteLevel(add_prefix_space=False, use_regex=False)])

    return split


SPLITS: dict[str, Callable[[], PreTokenizer]] = {
    "gpt-2": _bytes,
    "smollm": _digits,
    "llama-bpe": _by(r"\p{N}{1,3}"),
    "qwen2": _by(r"\p{N}"),
}
"""Name -> a new splitter."""
