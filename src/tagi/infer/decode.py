"""The one decoding loop. Inference, evaluation and the server all use it."""

import torch
from torch import Tensor

from tagi.model.backbone import Past
from tagi.model.rows import Rows
from tagi.model.tagi import Prepared, TagiModel


@torch.inference_mode()
def greedy(
    model: TagiModel, input_ids: Tensor, input_mask: Tensor, prepared: Prepared, rows: Rows, max_tokens: int
) -> Tensor:
    """Most likely token at each step, (R, N) -> (R, at most max_tokens); pad after a row's end."""
    shape = model.backbone.shape
    lora = prepared.adapter.lora
    context = model.encode_input(input_ids, input_mask, prepared, rows)
    last = input_ids.new_full((rows.count, 1), shape.decoder_start_token_id)
    done = torch.zeros_like(last, dtype=torch.bool)
    past: Past | None = None
    produced: list[Tensor] = []
    while len(produced) < max_tokens and not done.all():
        logits, past = model.backbone.decode(last, context, lora=lora, rows=rows, past=past)
        last = logits[:, -1:].argmax(-1).masked_fill(done, shape.pad_token_id)
        done |= last == shape.eos_token_id
        produced.append(last)
    return torch.cat(produced, dim=1)
