"""The one decoding loop, and the scoring of given answers. Inference, evaluation and the server all use them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tagi.losses import valid_positions
from tagi.model.backbone import Past
from tagi.model.rows import Rows
from tagi.model.tagi import Prepared, TagiModel, shift_right


@torch.inference_mode()
def greedy(
    model: TagiModel,
    input_ids: Tensor,
    input_mask: Tensor,
    prepared: Prepared,
    rows: Rows,
    max_tokens: int,
    members: int = 1,
) -> Tensor:
    """Most likely token at each step, (R, N) -> (R, at most max_tokens); pad after a row's end.

    Every `members` rows that stand together answer as one, their next-token probabilities averaged: (R / members, O).
    """
    shape = model.backbone.shape
    modules = prepared.adapter.modules
    context = model.encode_input(input_ids, input_mask, prepared, rows)
    last = input_ids.new_full((rows.count // members, 1), shape.decoder_start_token_id)
    done = torch.zeros_like(last, dtype=torch.bool)
    past: Past | None = None
    produced: list[Tensor] = []
    while len(produced) < max_tokens and not done.all():
        shown = last.repeat_interleave(members, dim=0)
        logits, past = model.backbone.decode(shown, context, modules=modules, rows=rows, past=past)
        last = averaged(logits[:, -1:], members).argmax(-1).masked_fill(done, shape.pad_token_id)
        done |= last == shape.eos_token_id
        produced.append(last)
    return torch.cat(produced, dim=1)


class Likelihood(NamedTuple):
    """Of given answers under the model, in nats."""

    total: Tensor  # (C,) log-likelihood of all tokens
    tokens: Tensor  # (C,) how many there are


@torch.inference_mode()
def score_answers(
    model: TagiModel,
    input_ids: Tensor,
    input_mask: Tensor,
    labels: Tensor,
    owner: Tensor,
    *,
    prepared: Prepared,
    rows: Rows,
) -> Likelihood:
    """Log-likelihood of C answers to R inputs, one encoder pass for all answers of an input.

    Args:
        input_ids: (R, N), as `input_mask`.
        labels: (C, O) tokens of the answers, -100 where padded.
        owner: (C,) the input that each answer belongs to.
    """
    shape, modules = model.backbone.shape, prepared.adapter.modules
    context = model.encode_input(input_ids, input_mask, prepared, rows).select(owner)
    decoder_ids = shift_right(labels, shape.decoder_start_token_id, shape.pad_token_id)
    logits, _ = model.backbone.decode(decoder_ids, context, modules=modules, rows=rows.select(owner))
    valid = valid_positions(labels)
    chosen = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return Likelihood((chosen * valid).sum(1), valid.sum(1))


def averaged(logits: Tensor, members: int) -> Tensor:
    """Logits (R, O, V), or the log of every `members` rows' mean probabilities (R / members, O, V)."""
    if members == 1:
        return logits
    return logits.log_softmax(-1).unflatten(0, (-1, members)).logsumexp(1) - math.log(members)
