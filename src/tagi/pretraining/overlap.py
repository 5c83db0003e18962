"""Which texts share a run of words with texts that must not be trained on (Brown et al., 2020, appendix C)."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Runs:
    """The runs of `length` words of some texts; case and everything between words are ignored."""

    def __init__(self, texts: Iterable[str], length: int) -> None:
        self.length = length
        self._weights = np.array([pow(_BASE, power, 1 << 64) for power in range(length)], dtype=np.uint64)
        every = [words for words in map(_words, texts) if len(words) >= length]
        self._runs = {run for words in every for run in _runs(words, length)}
        self._table = np.unique(np.concatenate([np.empty(0, np.uint64), *map(self._hashes, every)]))

    def __len__(self) -> int:
        return len(self._runs)

    def shared(self, text: str) -> str | None:
        """The first run of words that a text shares with these; None where it shares none."""
        words = _words(text)
        if len(words) < self.length or not len(self._table):
            return None
        hashes = self._hashes(words)
        near = self._table[np.searchsorted(self._table, hashes).clip(max=len(self._table) - 1)]
        candidates = (tuple(words[i : i + self.length]) for i in np.flatnonzero(near == hashes))
        return next((" ".join(run) for run in candidates if run in self._runs), None)

    def _hashes(self, words: list[str]) -> NDArray[np.uint64]:
        """Polynomial hashes of all runs, modulo 2^64; equal runs have equal hashes."""
        values = np.array([hash(word) & _MASK for word in words], dtype=np.uint64)
        return np.convolve(values, self._weights, mode="valid")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))
