"""Tokenizers for backbones that are trained from random initialisation.

Both keep T5's special tokens and their ids: `<pad>` 0, `</s>` 1 (appended to every text), `<unk>` 2.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, count, takewhile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tagi.config import Shape
from tagi.errors import CheckpointError, ConfigError, InputError

PAD, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
CHARACTER_COVERAGE = 0.9995
"""Share of a text that its unigram alphabet covers (SentencePiece's default); the rest is unknown."""
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What a tokenizer's file calls its class where `tokenizer.json` holds all that there is to it; the first is the older
name."""
_SPACE = "▁"
_SAMPLE = "sample"
"""A text that any tokenizer can read and no template changes."""


def word_level(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark of a closed vocabulary, lowercased; decodes to single spaces.

    Ids follow the order of `vocabulary`, after the special tokens; repeated words count once.
    """
    words = dict.fromkeys((*SPECIAL_TOKENS, *(word.lower() for word in vocabulary)))
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return _finish(tokenizer)


def unigram(texts: Iterable[str], vocabulary_size: int, *, extra_ids: int = 0) -> PreTrainedTokenizerFast:
    """A unigram language-model tokenizer over NFKC text, as T5's SentencePiece model.

    Any run of white space, line breaks included, becomes one space. The tokenizer has `vocabulary_size` ids
    and, behind them, `extra_ids` sentinels whose ids count down as T5's do: `<extra_id_0>` is the last.

    Two trainings on the same text may differ in the order of their ids and, slightly, in their scores (the
    trainer counts words in a randomly seeded hash map), so the tokenizer is saved beside its model.

    Raises:
        ConfigError: If the text has too many characters or too few pieces for `vocabulary_size`.
    """
    normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    normalized = [normalizer.normalize_str(text) for text in texts]
    alphabet = _alphabet(normalized)
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocabulary_size < smallest:
        raise ConfigError(f"vocabulary_size {vocabulary_size} is too small: this text needs at least {smallest}")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size, special_tokens=list(SPECIAL_TOKENS), unk_token=UNK, show_progress=False
    )
    kept = ("".join(one if one in alphabet else " " for one in text) for text in normalized)
    tokenizer.train_from_iterator(kept, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocabulary_size:
        size = "large" if found < vocabulary_size else "small"
        raise ConfigError(f"vocabulary_size {vocabulary_size} is too {size}: this text yields {found} pieces")
    return _finish(tokenizer, sentinels=[f"<extra_id_{index}>" for index in reversed(range(extra_ids))])


def sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of `<extra_id_0>`, `<extra_id_1>` and so on, as many as a tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    names = takewhile(lambda name: name in vocabulary, (f"<extra_id_{index}>" for index in count()))
    return tuple(vocabulary[name] for name in names)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None = None) -> list[int]:
    """Token ids of a text, `limit` of them at most, without the tokens that stand around one.

    They are cut here, as the library would: its own truncation is a switch inside the tokenizer, and threads that
    share one would read each other's limits.

    Raises:
        InputError: half a character, which no tokenizer can read.
    """
    check_text(text)
    ids = _ids(tokenizer, text, special=False)
    if limit is None or len(ids) <= limit:
        return ids
    return ids[:limit] if tokenizer.truncation_side == "right" else ids[len(ids) - limit :]


@lru_cache(maxsize=16)
def surrounding(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before a text, and behind it."""
    content, whole = _ids(tokenizer, _SAMPLE, special=False), _ids(tokenizer, _SAMPLE, special=True)
    size = len(content)
    start = next(n for n in range(len(whole) - size + 1) if whole[n : n + size] == content)
    return whole[:start], whole[start + size :]


@lru_cache(maxsize=16)
def chat_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What a tokenizer's chat template puts before the text of a user's turn, and behind it up to the answer.

    Raises:
        ConfigError: there is none, it raises, or it changes the text.
    """
    if not tokenizer.chat_template:
        raise ConfigError("prompt.style: chat needs a tokenizer with a chat template, and this one has none")
    try:
        turn = [{"role": "user", "content": _SAMPLE}]
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # whatever a template of somebody else's raises; it runs in the library's sandbox
        raise ConfigError(f"prompt.style: the tokenizer's chat template cannot be rendered ({error})") from error
    before, found, behind = text.partition(_SAMPLE)
    if not found or _SAMPLE in behind:
        raise ConfigError("prompt.style: the tokenizer's chat template does not hold a user's text once, as it is")
    return before, behind


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]  # type: ignore[return-value]


def check_text(text: str) -> None:
    """Refuse a lone surrogate, as half an emoji or undecodable bytes leave it: an InputError says which, and where."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"character {error.start + 1} is half of a surrogate pair ({half}), which is no character"
        ) from error


def without_limits(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with the truncation and padding switched off that its files may have asked for.

    The library does so at the first call; from then on calls leave it as it is, and threads can share it.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The standard fast-tokenizer files, into a folder that exists; an OSError where one cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # what the tokenizers library makes of the system's errors


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The stretches of `text` that the tokenizer maps to `<unk>`, in order, each once."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    found = (text[start:end].strip() for token, (start, end) in spans if token == tokenizer.unk_token_id)
    return list(dict.fromkeys(word for word in found if word))


def _alphabet(texts: Sequence[str]) -> set[str]:
    counts = Counter(character for text in texts for character in text if character != " ")
    ranked = counts.most_common()
    reached = accumulate(times for _, times in ranked)
    needed = CHARACTER_COVERAGE * counts.total()
    return {_SPACE} | {
        character for (character, times), total in zip(ranked, reached, strict=True) if total - times < needed
    }


def _finish(tokenizer: Tokenizer, sentinels: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(sentinels),
        clean_up_tokenization_spaces=False,
    )


def _opened(folder: Path) -> PreTrainedTokenizerBase:
    """By its own class; to import what finds classes by name takes half a second, so only where the class is no plain
    one."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and json.loads(settings.read_bytes()).get("tokenizer_class") in PLAIN:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load(folder: Path, shape: Shape | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Args:
        shape: of the language model that is to read its ids.

    Raises:
        CheckpointError: its files are missing or damaged; it has ids that the model does not embed, or no end token.
    """
    try:
        found = without_limits(_opened(folder))
    except Exception as error:  # the tokenizers library raises just that
        raise CheckpointError(f"{folder}: the tokenizer's files are missing or damaged ({error})") from error
    if shape is None:
        return found
    most = max(found.get_vocab().values(), default=-1)
    if most >= shape.vocab_size:  # an embedding may have more rows than there are ids, as padded ones do
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {most}, but the language model embeds those below "
            f"{shape.vocab_size} only; resize its embedding, or take the tokenizer that it was trained with"
        )
    if found.eos_token_id is None:
        raise CheckpointError(f"{folder}: the tokenizer has no end token (eos_token), so that no answer would ever end")
    return found
