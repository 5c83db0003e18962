"""How byte-level tokenizers split text before they merge bytes, by llama.cpp's names (`tokenizer.ggml.pre`)."""

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _by(numbers: str) -> PreTokenizer:
    """Llama 3's splitting, which Qwen2 shares but for `numbers`."""
    pieces = Split(Regex(_WORDS + numbers + _REST), behavior="isolated")
    return Sequence([pieces, ByteLevel(add_prefix_space=False, use_regex=False)])


_GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)
SPLITS: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "smollm": Sequence([Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _by(r"\p{N}{1,3}"),
    "qwen2": _by(r"\p{N}"),
}
