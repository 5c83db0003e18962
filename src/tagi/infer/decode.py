"""The one decoding loop. Inference, evaluation and the server all use it."""

import math

import torch
from torch import Tensor

from tagi.model.backbone import Past
from tagi.model.rows import Rows
from tagi.model.tagi import Prepared, TagiModel


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


def averaged(logits: Tensor, members: int) -> Tensor:
    """Logits (R, O, V), or the log of every `members` rows' mean probabilities (R / members, O, V)."""
    if members == 1:
        return logits
    return logits.log_softmax(-1).unflatten(0, (-1, members)).logsumexp(1) - math.log(members)
