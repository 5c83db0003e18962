"""Norms that torch has not."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the mean square taken in fp32; no bias, no centring."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean_square + self.eps)).to(self.weight.dtype)
