"""Plain text as training rows: pieces of documents, corrupted or cut in two, several to a row of fixed length.

Every row is a pure function of the seed and its number, so that training resumes anywhere.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi.config import CorpusConfig
from tagi.data.collate import IGNORE, Batch
from tagi.data.mixture import epoch_order
from tagi.data.segments import Tokens, TokenStore
from tagi.data.tokenizers import sentinels
from tagi.errors import ConfigError

SHORTEST = 8
"""Tokens of the shortest piece of a document that is trained on."""
OPEN = 32
"""Rows that are filled at a time."""
DENSITY, MEAN_SPAN = 0.15, 3.0
"""Share of the tokens that span corruption hides, and the mean length of a hidden span (Raffel et al., 2020)."""

Ids = NDArray[np.int64]


class Pair(NamedTuple):
    """What the encoder reads of a piece, and what the decoder says of it."""

    input: Ids
    target: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(Batch):
    """Rows that hold several texts each and no instruction; texts of a row do not meet.

    The owners say which of its row's texts, numbered from 1, each token belongs to; 0 is padding.
    """

    input_owner: Tensor  # (R, N)
    target_owner: Tensor  # (R, O)


class Pieces(NamedTuple):
    """Pieces of documents, tokens `first[i]` up to `last[i]` of a store."""

    first: Ids
    last: Ids
    ends: NDArray[np.bool_]
    """Whether a piece is the end of its document."""


@dataclass(frozen=True, slots=True)
class SpanCorruption:
    """Spans are hidden behind sentinels, and the target names them in turn (Raffel et al., 2020, §3.1.4).

    Of n tokens round(density · n) are hidden in round(hidden / mean_span) spans; the lengths of the spans and of the
    gaps between them are uniform over all ways to divide the two. A piece begins with a gap and ends with a span.
    """

    length: int
    target_length: int
    density: float
    mean_span: float
    sentinels: tuple[int, ...]
    end: int

    @property
    def longest(self) -> int:
        """Tokens of the longest piece that fits into an empty row."""
        lengths = np.arange(2, self.length + self.target_length + 1)
        inputs, targets = self.sizes(lengths)
        return int(lengths[(inputs <= self.length) & (targets <= self.target_length)].max())

    @property
    def room(self) -> tuple[int, int]:
        """Input and target tokens of a row."""
        return self.length, self.target_length

    def sizes(self, lengths: Ids, ends: NDArray[np.bool_] | None = None, draws: Ids | None = None) -> tuple[Ids, Ids]:
        """Input and target tokens of pieces of so many tokens."""
        del ends, draws
        hidden, spans = self.hidden(lengths)
        return lengths - hidden + spans + 1, hidden + spans + 1

    def pair(self, piece: Tokens, ends: bool, draw: int) -> Pair:
        """Input and target of a piece; `ends` where it is the end of its document, `draw` is 62 random bits."""
        del ends
        rng = np.random.default_rng(draw)
        hidden, spans = (int(x[0]) for x in self.hidden(np.array([len(piece)])))
        gaps, lengths = divided(len(piece) - hidden, spans, rng), divided(hidden, spans, rng)
        bounds = np.cumsum(np.stack((gaps, lengths), axis=1))
        parts = np.split(piece.astype(np.int64), bounds[:-1])
        marks = [np.array([mark]) for mark in self.sentinels[:spans]]
        told = [x for gap, mark in zip(parts[0::2], marks, strict=True) for x in (gap, mark)]
        asked = [x for mark, span in zip(marks, parts[1::2], strict=True) for x in (mark, span)]
        end = np.array([self.end])
        return Pair(np.concatenate([*told, end]), np.concatenate([*asked, end]))

    def hidden(self, lengths: Ids) -> tuple[Ids, Ids]:
        """Hidden tokens and spans of pieces of so many tokens."""
        hidden = np.clip(np.round(lengths * self.density).astype(np.int64), 1, lengths - 1)
        most = np.minimum(np.minimum(hidden, lengths - hidden), len(self.sentinels))
        return hidden, np.clip(np.round(hidden / self.mean_span).astype(np.int64), 1, most)


@dataclass(frozen=True, slots=True)
class PrefixLM:
    """A piece is cut at a place drawn uniformly, and what follows is said after reading what came before.

    The language-model adaptation of Lester et al. (2021). The target ends with the end token where its document ends.
    """

    length: int
    end: int

    @property
    def longest(self) -> int:
        return self.length

    @property
    def room(self) -> tuple[int, int]:
        return self.length, self.length

    def sizes(self, lengths: Ids, ends: NDArray[np.bool_], draws: Ids) -> tuple[Ids, Ids]:
        cuts = 1 + draws % (lengths - 1)
        return cuts + 1, lengths - cuts + ends

    def pair(self, piece: Tokens, ends: bool, draw: int) -> Pair:
        ids, cut, end = piece.astype(np.int64), 1 + draw % (len(piece) - 1), np.array([self.end])
        return Pair(np.concatenate((ids[:cut], end)), np.concatenate((ids[cut:], end)) if ends else ids[cut:])


Objective = SpanCorruption | PrefixLM
"""How a piece of text becomes a task for an encoder-decoder."""


def span_corruption(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> SpanCorruption:
    """T5's objective with a tokenizer's sentinels; a ConfigError where it has none."""
    marks = sentinels(tokenizer)
    if not marks:
        raise ConfigError("tokenizer: has no sentinels (<extra_id_0>, …), which span corruption needs")
    room = config.length, config.target_length
    return SpanCorruption(*room, DENSITY, MEAN_SPAN, marks, tokenizer.eos_token_id)  # type: ignore[arg-type]


def prefix_lm(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> PrefixLM:
    """LM adaptation in rows whose input is as long as span corruption's."""
    return PrefixLM(config.length, tokenizer.eos_token_id)  # type: ignore[arg-type]


def divided(total: int, parts: int, rng: np.random.Generator) -> Ids:
    """`total` as the sum of `parts` numbers of at least 1, every way equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False) + 1)
    return np.diff(cuts, prepend=0, append=total)


class PackedText:
    """An endless pass over a corpus in rows of fixed length, in a new order and with new draws in every epoch."""

    def __init__(self, store: TokenStore, objective: Objective, seed: int) -> None:
        self.store, self.objective, self.seed = store, objective, seed
        self.pieces = pieces(store, objective.longest)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self.epoch_rows: Callable[[int], int] = lru_cache(maxsize=None)(lambda epoch: len(self._epoch(epoch)[0]))
        """Rows of an epoch."""

    def batch(self, first: int, rows: int) -> PackedBatch:
        """Rows `first` up to `first + rows`."""
        return packed([self._row(first + i) for i in range(rows)], self.objective.room)

    def _row(self, index: int) -> list[Pair]:
        epoch = 0
        while index >= (rows := self.epoch_rows(epoch)):
            index, epoch = index - rows, epoch + 1
        rows_of_pieces, draws = self._epoch(epoch)
        pairs: list[Pair] = []
        for number in rows_of_pieces[index]:
            first, last, ends = (x[number] for x in self.pieces)
            pairs.append(self.objective.pair(self.store.tokens[first:last], bool(ends), int(draws[number])))
        return pairs

    def _draw_epoch(self, epoch: int) -> tuple[Sequence[Sequence[int]], Ids]:
        """The pieces that stand in each row of a pass over the corpus, and the randomness of each piece."""
        order = epoch_order(self.seed, epoch, len(self.pieces.first))
        draws = np.random.default_rng((self.seed, 3, epoch)).integers(0, 1 << 62, len(order))
        inputs, targets = self.objective.sizes(self.pieces.last - self.pieces.first, self.pieces.ends, draws)
        return filled(order, inputs, targets, self.objective.room), draws


def pieces(store: TokenStore, longest: int) -> Pieces:
    """Every document in pieces of `longest` tokens and a rest; a rest of fewer than `SHORTEST` is left out."""
    sizes = np.diff(store.offsets)
    counts = -(-sizes // longest)
    document = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = store.offsets[document] + within * longest
    last = np.minimum(first + longest, store.offsets[document + 1])
    kept = last - first >= SHORTEST
    ends = (last == store.offsets[document + 1]) & ~np.isin(document, list(store.shortened))
    return Pieces(first[kept], last[kept], ends[kept])


def filled(order: Ids, inputs: Ids, targets: Ids, room: tuple[int, int]) -> Sequence[Sequence[int]]:
    """Pieces, in order, into rows: each goes into the first of the last `OPEN` rows that has room for it."""
    rows: list[list[int]] = []
    opened: deque[tuple[int, int, list[int]]] = deque(maxlen=OPEN)
    sizes = zip(order.tolist(), inputs[order].tolist(), targets[order].tolist(), strict=True)
    for number, more_in, more_out in sizes:
        for place, (free_in, free_out, row) in enumerate(opened):
            if more_in <= free_in and more_out <= free_out:
                row.append(number)
                opened[place] = (free_in - more_in, free_out - more_out, row)
                break
        else:
            rows.append([number])
            opened.append((room[0] - more_in, room[1] - more_out, rows[-1]))
    return rows


def packed(rows: Sequence[Sequence[Pair]], room: tuple[int, int]) -> PackedBatch:
    """Rows of pairs as a batch of fixed shape."""
    input_ids, input_owner = _joined([[pair.input for pair in row] for row in rows], room[0])
    labels, target_owner = _joined([[pair.target for pair in row] for row in rows], room[1])
    return PackedBatch(
        instruction_ids=torch.zeros(1, 0, dtype=torch.long),
        instruction_mask=torch.zeros(1, 0, dtype=torch.long),
        input_ids=input_ids,
        input_mask=(input_owner > 0).long(),
        labels=labels.masked_fill(target_owner == 0, IGNORE),
        task_index=torch.zeros(len(rows), dtype=torch.long),
        input_owner=input_owner,
        target_owner=target_owner,
    )


def _joined(rows: Sequence[Sequence[Ids]], length: int) -> tuple[Tensor, Tensor]:
    """The parts of every row end to end (R, length), padded with 0, and which of them, from 1, a token belongs to."""
    ids, owner = torch.zeros(2, len(rows), length, dtype=torch.long)
    for number, parts in enumerate(rows):
        whole, lengths = np.concatenate(parts), [len(part) for part in parts]
        ids[number, : len(whole)] = torch.from_numpy(whole)
        owner[number, : len(whole)] = torch.arange(1, len(parts) + 1).repeat_interleave(torch.tensor(lengths))
    return ids, owner
