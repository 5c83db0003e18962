"""Tokenized plain text, and the three segments that hypernetwork pretraining cuts each document into."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tagi.data.mixture import epoch_order

SEGMENTS = 3
MAX_LENGTH = 1024
"""Tokens of a document that are used; the rest is dropped."""
_CHUNK = 256

Tokens = NDArray[np.integer[Any]]


class Cut(NamedTuple):
    """A document's instruction a, input b and target c."""

    a: Tokens
    b: Tokens
    c: Tokens
    ends: bool
    """Whether c ends where the document does, and not where it was cut off."""


def cut(tokens: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, Tokens]:
    """Cut a document into instruction a, input b and target c (Eq. 3).

    The cuts are two independent uniform draws, sorted, given that every part has a token: each of the
    (n-1)(n-2)/2 ways to cut n tokens is equally likely.

    Args:
        tokens: (n,) token ids, n >= 3; those past `MAX_LENGTH` are dropped.
    """
    tokens = tokens[:MAX_LENGTH]
    first, second = np.sort(rng.choice(len(tokens) - 1, SEGMENTS - 1, replace=False) + 1)
    return tokens[:first], tokens[first:second], tokens[second:]


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Tokenized documents end to end: document i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: Tokens
    offsets: NDArray[np.int64]
    shortened: frozenset[int] = frozenset()
    """Numbers of the documents whose end is not here."""

    @staticmethod
    def of(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, *, longest: int | None = None) -> "TokenStore":
        """Tokenize texts; those with fewer than 3 tokens are skipped, those with more than `longest` cut.

        Takes two bytes a token, four with a vocabulary past 65,536. No special tokens are added.
        """
        tokens = array("H" if len(tokenizer) <= 1 << 16 else "i")
        ends = array("q", [0])
        shortened: set[int] = set()
        for ids in _tokenized(texts, tokenizer, None if longest is None else longest + 1):
            if len(ids) < SEGMENTS:
                continue
            if longest is not None and len(ids) > longest:
                shortened.add(len(ends) - 1)
            tokens.extend(ids[:longest])
            ends.append(len(tokens))
        return TokenStore(np.asarray(tokens), np.asarray(ends), frozenset(shortened))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def pretraining_segments(store: TokenStore, index: int, seed: int) -> Cut:
    """The `index`-th item of an endless pass over the store, in a new order and with new cuts every time.

    A pure function of its arguments, so that training resumes at any index.
    """
    epoch, place = divmod(index, len(store))
    document = int(epoch_order(seed, epoch, len(store))[place])
    whole = document not in store.shortened and len(store[document]) <= MAX_LENGTH
    return Cut(*cut(store[document], np.random.default_rng((seed, 1, index))), whole)


def _tokenized(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, longest: int | None) -> Iterator[list[int]]:
    while chunk := list(islice(texts, _CHUNK)):
        encoded = tokenizer(chunk, add_special_tokens=False, verbose=False)
        yield from (ids[:longest] for ids in encoded["input_ids"])
