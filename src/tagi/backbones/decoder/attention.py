"""Causal attention with grouped heads, over a row's own tokens and what its task attends to. Shapes: see
`tagi.backbones.rows`; G is the number of query heads that share one head of keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tagi.backbones.attention import fused, softmax
from tagi.backbones.cache import KeyValue
from tagi.backbones.encoded import Attended
from tagi.backbones.rows import Rows


@dataclass(frozen=True, slots=True)
class View:
    """Which keys each query of a pass sees, the same in all blocks with the same window."""

    own: Tensor | None  # (R or 1, 1, L, C) of the row's own tokens; None where each sees all of them
    attended: Tensor | None  # (R, 1, L, S) of what its task attends to; None where there is nothing


def view(
    distance: Tensor,
    hidden: Tensor | None,
    positions: Tensor,
    attended: Attended | None,
    rows: Rows,
    window: int | None,
) -> View:
    """The view of one pass.

    Args:
        distance: (1 or R, L, C), place of each key - place of each query.
        hidden: (R, 1, 1, C), keys that are padding.
        positions: (R, L), of the queries.
    """
    own = (distance <= 0)[:, None]
    if window is not None:
        own = own & (distance > -window)[:, None]
    if hidden is not None:
        own = own & ~hidden | (distance == 0)[:, None]  # padding sees itself: a softmax over nothing is not a number
    if positions.shape[1] == 1 and hidden is None and window is None:
        own = None  # the newest token sees all that there is
    if attended is None:
        return View(own, None)
    seen = rows.pick(attended.mask)[:, None, None, :]
    if window is not None:
        seen = seen & (positions[:, None, :, None] - rows.pick(attended.positions)[:, None, None, :] < window)
    return View(own, seen.expand(-1, -1, positions.shape[1], -1))


def attend(q_RHLK: Tensor, own: KeyValue, attended: KeyValue | None, seen: View, rows: Rows) -> Tensor:
    """softmax(q [I; k]ᵀ / √K) [v_I; v], (R, H, L, K), over what the task attends to and the row's own tokens."""
    heads = own.k.shape[1]
    q_RHLK = q_RHLK.unflatten(1, (heads, -1))  # (R, Hkv, G, L, K)
    groups, queries = q_RHLK.shape[2], q_RHLK.shape[3]
    q = q_RHLK.flatten(2, 3)  # the heads of a group are further queries: no key or value is repeated
    if attended is None or seen.attended is None:
        mixed = fused(q, own, _each(seen.own, groups))
    elif queries == 1:
        mixed = _beside(q, own, attended, seen, rows)
    else:
        # For many queries the scores outweigh the keys: these are put in front of the row's own for the one block.
        # Groups expand, for the backward pass of an index is slow.
        k, v = (torch.cat((rows.pick(a), b), dim=2) for a, b in ((attended.k, own.k), (attended.v, own.v)))
        assert seen.own is not None
        mask = torch.cat((seen.attended, seen.own.expand(len(q), -1, -1, -1)), dim=-1)
        mixed = fused(q, KeyValue(k, v), _each(mask, groups))
    return mixed.unflatten(2, (groups, queries)).flatten(1, 2)


def _beside(q: Tensor, own: KeyValue, attended: KeyValue, seen: View, rows: Rows) -> Tensor:
    """One query a row, (R, Hkv, G, K): one softmax over two blocks of scores, what the task attends to read where it
    lies once for all of its rows."""
    q = q * q.shape[-1] ** -0.5
    assert seen.attended is not None
    told = rows.matmul(q, attended.k.mT).masked_fill(~seen.attended, -torch.inf)
    said = q @ own.k.mT
    if seen.own is not None:
        said = said.masked_fill(~seen.own, -torch.inf)
    length = told.shape[-1]
    weights = softmax(torch.cat((told, said), dim=-1))
    return rows.matmul(weights[..., :length], attended.v) + weights[..., length:] @ own.v


def weights(q_RHLK: Tensor, own: KeyValue, attended: KeyValue, seen: View, rows: Rows) -> Tensor:
    """The part of softmax(q [I; k]ᵀ / √K) that falls on what the task attends to, (R, H, L, S).

    For looking at: `attend` never has them in memory.
    """
    groups = q_RHLK.shape[1] // own.k.shape[1]
    k = torch.cat((rows.pick(attended.k), own.k), dim=2).repeat_interleave(groups, dim=1)
    scores = (q_RHLK * q_RHLK.shape[-1] ** -0.5) @ k.mT
    told = attended.k.shape[2]
    if seen.attended is not None:
        scores[..., :told] = scores[..., :told].masked_fill(~seen.attended, -torch.inf)
    if seen.own is not None:
        scores[..., told:] = scores[..., told:].masked_fill(~seen.own, -torch.inf)
    return softmax(scores)[..., :told]


def _each(mask: Tensor | None, groups: int) -> Tensor | None:
    """A mask (R, 1, L, C) for every head of a group, (R, 1, G·L, C)."""
    return mask if mask is None or groups == 1 or mask.shape[2] == 1 else mask.repeat(1, 1, groups, 1)


def right_aligned(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask (R, N) with the tokens of a row at its end in their order."""
    if mask.all() or bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return ids, mask
    order = mask.long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)
