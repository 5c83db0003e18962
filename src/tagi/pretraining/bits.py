"""How well a language model predicts text: bits per byte, which compares models across tokenizers."""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi.backbones.t5.model import T5
from tagi.config import CorpusConfig
from tagi.data.segments import SEGMENTS, TokenStore
from tagi.data.tokenizers import sentinels
from tagi.errors import ConfigError, InputError
from tagi.infer.engine import Tagi
from tagi.losses import IGNORE, cross_entropy
from tagi.pretraining.packing import PackedText, prefix_lm, span_corruption
from tagi.pretraining.stage import PackedT5

Kind = Literal["spans", "prefix"]
_ROWS = 16
_SPACE = "▁"


def kinds(tagi: Tagi) -> tuple[Kind, ...]:
    """What can be measured of a model: spans need sentinels."""
    return ("spans", "prefix") if sentinels(tagi.tokenizer) else ("prefix",)


@torch.inference_mode()
def bits_per_byte(tagi: Tagi, texts: Sequence[str], config: CorpusConfig, kind: Kind) -> float:
    """Bits that a model needs for each byte of what it has to say of some texts.

    The negative log-likelihood of all target tokens, sentinels and ends among them, over ln 2 and over the UTF-8 bytes
    of the text that they spell. `spans` are 15 % of each text given the rest, `prefix` is what follows a cut given
    what comes before; both the same for every model with the same tokenizer.

    Raises:
        ConfigError: a decoder-only model; spans, and a tokenizer without sentinels.
        InputError: no text is long enough, or the model gives no numbers.
    """
    if not tagi.model.backbone.has_encoder:
        raise ConfigError(f"method {tagi.config.method}: bits per byte are measured of an encoder-decoder")
    store = TokenStore.of(iter(texts), tagi.tokenizer)
    if not len(store):
        raise InputError(f"nothing is left to score: none of {len(texts)} documents has {SEGMENTS} tokens")
    text = PackedText(store, (span_corruption if kind == "spans" else prefix_lm)(config, tagi.tokenizer), seed=0)
    rows, sizes, reader = text.epoch_rows(0), piece_bytes(tagi.tokenizer), PackedT5(cast(T5, tagi.model.backbone))
    nats, spelt = 0.0, 0
    for first in range(0, rows, _ROWS):
        batch = text.batch(first, min(_ROWS, rows - first))
        here = batch.to(tagi.device)
        logits = reader(here.input_ids, here.input_owner, here.target_ids, here.target_owner)
        nats += float(cross_entropy(logits, here.labels).total)
        spelt += int(sizes[batch.labels[batch.labels != IGNORE]].sum())
    if not spelt or not math.isfinite(nats):
        raise InputError("the model's likelihoods are not a number" if spelt else "no target token spells any text")
    return nats / math.log(2) / spelt


def piece_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """UTF-8 bytes of the text that each id spells, (V,); none for padding, ends and sentinels, one for an unknown
    character."""
    pieces = cast(list[str], tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    sizes = torch.tensor([len(piece.replace(_SPACE, " ").encode()) for piece in pieces])
    silent = [tokenizer.pad_token_id, tokenizer.eos_token_id, *sentinels(tokenizer)]
    sizes[[cast(int, number) for number in silent]] = 0
    sizes[cast(int, tokenizer.unk_token_id)] = 1
    return sizes
