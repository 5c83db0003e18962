"""Attention that is not asked for its weights: the fused kernel, or two products in its place."""

import pytest
import torch
from torch.nn import functional as F

from tagi.backbones import attention
from tagi.backbones.cache import KeyValue

PRODUCTS = {torch.float32: 4e-6, torch.bfloat16: 0.08}  # worst 8.2e-7 and 0.039: scores of up to 15 are rounded
KERNEL = {torch.float32: 4e-6, torch.bfloat16: 0.02}  # worst 8.2e-7 and 0.010


def drawn(queries: int, keys: int, dtype: torch.dtype) -> tuple[torch.Tensor, KeyValue]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, size, 16, generator=generator).to(dtype) for size in (queries, keys, keys))
    return q, KeyValue(k, v)


def masks(queries: int, keys: int, dtype: torch.dtype) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(3, 1, queries, keys, generator=generator) < 0.6
    seen[..., 0] = True
    return [None, seen, seen[:, :, :1], torch.randn(1, 4, queries, keys, generator=generator).to(dtype)]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 5])
def test_two_products_in_place_of_the_fused_kernel(
    queries: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, own = drawn(queries, 9, dtype)
    for mask in masks(queries, 9, dtype):
        for scale in (None, 1.0):
            wide = mask if mask is None or mask.dtype == torch.bool else mask.double()
            exact = F.scaled_dot_product_attention(
                *(x.double() for x in (q, own.k, own.v)), attn_mask=wide, scale=scale
            )
            with monkeypatch.context() as changed:
                by_products = attention.fused(q, own, mask, scale)
                changed.setattr(attention, "MOST_SCORES", 0)
                by_kernel = attention.fused(q, own, mask, scale)
            for found, bound in ((by_products, PRODUCTS), (by_kernel, KERNEL)):
                assert found.dtype == dtype and (found.double() - exact).abs().max() < bound[dtype]
            assert torch.equal(by_products, by_kernel) == (dtype == torch.float32)
