"""Attention as T5 does it: unscaled scores, an additive bias, softmax in fp32. Shapes: see `rows.py`."""

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi.backbones.cache import KeyValue
from tagi.backbones.rows import Rows

MOST_SCORES = 1 << 24
"""That are held at once in a type of two bytes."""


def split_heads(x_RLI: Tensor, heads: int) -> Tensor:
    """(R, L, H·K) -> (R, H, L, K)."""
    return x_RLI.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_RHLK: Tensor) -> Tensor:
    """(R, H, L, K) -> (R, L, H·K)."""
    return x_RHLK.transpose(1, 2).flatten(-2)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for a token and 0 for padding, (R, L), or by query (R, O, L) -> additive bias (R, 1, 1 or O, L)."""
    hidden = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)
    return hidden[:, None] if mask.dim() == 3 else hidden[:, None, None, :]


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, returned in the scores' dtype; torch's kernels compute it in fp32."""
    return F.softmax(scores, dim=-1)


def fused(q_RHOK: Tensor, own: KeyValue, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """softmax(scale · q kᵀ + mask) v by torch's fused kernel, (R, H, O, K); no gradient reaches a mask of numbers.

    Args:
        mask: truth values, False where a key is hidden, or numbers that are added.
        scale: 1 / √K by default.

    On processors that compute in bf16 the kernel takes up to six times as long as the two products do (487 keys, one
    query a head: 0.52 and 0.08 ms), whose scores are therefore held where they are few; but not all blocks' at once for
    a gradient.
    """
    scores = q_RHOK.shape[:-1].numel() * own.k.shape[-2]
    narrow = q_RHOK.device.type == "cpu" and q_RHOK.dtype.itemsize < 4
    if not narrow or torch.is_grad_enabled() or scores > MOST_SCORES:
        return F.scaled_dot_product_attention(q_RHOK, own.k, own.v, attn_mask=mask, scale=scale)
    held = (q_RHOK * (own.k.shape[-1] ** -0.5 if scale is None else scale)) @ own.k.mT
    if mask is not None:
        held = held.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else held + mask
    return softmax(held) @ own.v


def biased_scores(q_RHOK: Tensor, k_RHLK: Tensor, bias: Tensor) -> Tensor:
    """q kᵀ + bias (R, H, O, L) in one product, rounded once."""
    rows, heads, queries, _ = q_RHOK.shape
    bias = bias.expand(rows, heads, queries, k_RHLK.shape[-2]).flatten(0, 1)
    return torch.baddbmm(bias, q_RHOK.flatten(0, 1), k_RHLK.flatten(0, 1).mT).unflatten(0, (rows, heads))


def attend(q_RHOK: Tensor, own: KeyValue, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ + bias) v, (R, H, O, K), the weights dropped with probability `dropout`.

    Without gradients it is the fused kernel of torch, which keeps no scores but cannot train a bias.
    """
    if not torch.is_grad_enabled() and not dropout:
        return fused(q_RHOK, own, bias.to(q_RHOK.dtype), scale=1.0)
    weights = softmax(biased_scores(q_RHOK, own.k, bias))
    return F.dropout(weights, dropout) @ own.v


def attend_shared(q_RHOK: Tensor, own: KeyValue, bias: Tensor, rows: Rows) -> Tensor:
    """`attend` to keys and values (T, H, L, K) and a bias (T, 1, 1, L) that the rows of a task share."""
    if rows.grouped:
        return rows.ungroup(attend(rows.group(q_RHOK), own, bias))
    index = cast(Tensor, rows.index)
    return attend(q_RHOK, own.select(index), bias[index])


def attend_concatenated(
    q_RHOK: Tensor, own: KeyValue, bias: Tensor, told: KeyValue, told_bias: Tensor, rows: Rows, dropout: float = 0.0
) -> Tensor:
    """Attention over the concatenation (I; F) along length, without ever copying I per row (§3.2.1).

    The scores of the encoded instruction, (T, H, S, K) with a bias (T, 1, 1, S), and of the row's own input share one
    softmax; each task's keys and values are read once for all of its rows.
    """
    scores_I = rows.matmul(q_RHOK, told.k.transpose(-1, -2)) + rows.pick(told_bias)
    scores_F = q_RHOK @ own.k.transpose(-1, -2) + bias
    length = scores_I.shape[-1]
    weights = F.dropout(softmax(torch.cat((scores_I, scores_F), dim=-1)), dropout)
    return rows.matmul(weights[..., :length], told.v) + weights[..., length:] @ own.v


def relative_bucket(distance: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of `key position - query position`: exact when near, logarithmic up to `max_distance`."""
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)
