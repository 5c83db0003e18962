"""What is counted of a piece of work, on real and on meta tensors."""

import pytest
import torch
from torch.nn import functional as F

from tagi.cost.counting import Memory, flops

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])
KILO = 1024


@DEVICES
def test_a_multiply_add_is_two_and_attention_is_counted(device: str) -> None:
    x, w = torch.ones(3, 4, device=device), torch.ones(4, 5, device=device)
    assert flops(lambda: x @ w)[0] == 2 * 3 * 4 * 5
    q, k = torch.ones(2, 3, 7, 4, device=device), torch.ones(2, 3, 9, 4, device=device)
    assert flops(lambda: F.scaled_dot_product_attention(q, k, k))[0] == 4 * 2 * 3 * 7 * 9 * 4


def test_a_meta_mask_is_full() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert flops(lambda: (bool(mask.all()), int(mask.sum())))[1] == (True, 1)


@DEVICES
def test_memory_is_what_lives(device: str) -> None:
    held = torch.zeros(KILO, device=device)
    with Memory([held]) as memory:
        one = held + 1  # 4 KiB
        assert (memory.live, memory.peaks) == (4 * KILO, [4 * KILO])
        view = one.view(32, 32).T
        one += held.view(-1)
        assert memory.live == 4 * KILO
        del one
        assert memory.live == 4 * KILO
        del view
        assert (memory.live, memory.peaks) == (0, [4 * KILO])


@DEVICES
def test_every_part_has_a_peak_of_its_own(device: str) -> None:
    with Memory([], parts=3) as memory:
        large = torch.zeros(KILO, dtype=torch.uint8, device=device)
        small = torch.zeros(10, dtype=torch.uint8, device=device)
        del large
        memory.begin(2)
        assert memory.peaks == [KILO + 10, 0, 10]
        del small


@DEVICES
def test_of_dropout_a_byte_a_value_is_kept(device: str) -> None:
    x = torch.ones(KILO, device=device, requires_grad=True)
    with Memory([x]) as memory:
        y = F.dropout(x, 0.5)
        assert memory.live == (4 + 1) * KILO
        del y
        assert memory.live == 0
