"""Rotary positions as pure functions. Shapes: see `tagi.backbones.rows`."""

import math

import torch
from torch import Tensor

from tagi.config import Rotary

Angles = tuple[Tensor, Tensor]
"""Cosine and sine (R or 1, 1, L, K) of every position and pair of a head's values."""


def angles(rotary: Rotary, width: int, positions: Tensor, dtype: torch.dtype) -> Angles:
    """Of positions (R or 1, L) for heads of `width`, computed in fp32 as Hugging Face does."""
    turned = positions[:, None, :, None].float() * frequencies(rotary, width, positions.device)
    turned = torch.cat((turned, turned), dim=-1)
    return turned.cos().to(dtype), turned.sin().to(dtype)


def frequencies(rotary: Rotary, width: int, device: torch.device | None = None) -> Tensor:
    """Radians that each pair of a head's values turns by from one position to the next, (K / 2,) in fp32."""
    even = torch.arange(0, width, 2, dtype=torch.long, device=device).float()
    plain = 1.0 / rotary.theta ** (even / width)
    if rotary.scaling == "none":
        return plain
    if rotary.scaling == "linear":
        return plain / rotary.factor
    times = rotary.original_positions * plain / (2 * math.pi)
    kept = (times - rotary.low_frequency) / (rotary.high_frequency - rotary.low_frequency)
    kept = kept.clamp(0.0, 1.0)  # 1 for short chunks, 0 for long ones
    return (1 - kept) * plain / rotary.factor + kept * plain


def rotate(x_RHLK: Tensor, by: Angles) -> Tensor:
    """Every pair (i, i + K / 2) of a head's values turned by its angle."""
    cosine, sine = by
    first, second = x_RHLK.chunk(2, dim=-1)
    return x_RHLK * cosine + torch.cat((-second, first), dim=-1) * sine
