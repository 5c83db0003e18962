"""Which task each row of a batch belongs to, and matrix products that respect it.

Shape suffixes in this package: T tasks, R rows, S instruction tokens, N input tokens, O target tokens,
L any length, D model width, H heads, K width of a head, I and J any matrix sides, r LoRA rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDED = 2
"""Places per row, at most, up to which tasks with unequal numbers of rows are padded to groups of equal size."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Assignment of R rows to T tasks.

    `index` (R,) names each row's task; None means that the rows stand in T consecutive groups of equal size, which
    needs no gathering and covers one task for all rows (T = 1) and one task per row (T = R). With an index, `slot`
    (R,) says where each row stands in T groups of `width` places, some of them empty; None where that would be a waste.
    """

    tasks: int
    count: int
    index: Tensor | None = None
    slot: Tensor | None = None
    width: int = 0

    def __post_init__(self) -> None:
        if self.index is None and self.count % self.tasks:
            raise ValueError(f"{self.count} rows are no {self.tasks} groups of equal size; give an index")

    @staticmethod
    def of(index: Tensor, tasks: int) -> "Rows":
        """Rows by explicit task index (R,); recognises equal consecutive groups."""
        count = index.numel()
        if count % tasks == 0:
            grouped = torch.arange(tasks, device=index.device).repeat_interleave(count // tasks)
            if torch.equal(grouped, index):
                return Rows(tasks, count)
        width = int(index.bincount().max())
        slot = _slots(index, width) if width * tasks <= PADDED * count else None
        return Rows(tasks, count, index, slot, width)

    @property
    def grouped(self) -> bool:
        """Whether the rows of a task can read what they share without copies of it."""
        return self.index is None or self.slot is not None

    def select(self, chosen: Tensor) -> "Rows":
        """The rows `chosen` (C,), in that order, some perhaps more than once."""
        if self.tasks == 1:
            return Rows(1, chosen.numel())
        each = self.count // self.tasks
        owner = self.index if self.index is not None else torch.arange(self.count, device=chosen.device) // each
        return Rows.of(owner[chosen], self.tasks)

    def pick(self, x_T: Tensor) -> Tensor:
        """Each row's entry of a per-task tensor (T, ...) -> (R, ...)."""
        if self.index is not None:
            return x_T[self.index]
        if self.tasks == self.count:
            return x_T
        each = self.count // self.tasks
        return x_T.unsqueeze(1).expand(-1, each, *x_T.shape[1:]).reshape(self.count, *x_T.shape[1:])

    def matmul(self, x_RLI: Tensor, w_TIJ: Tensor) -> Tensor:
        """x (R, *, L, I) @ w (T, *, I, J), every row with its own task's matrix -> (R, *, L, J).

        Groups of rows are folded into the length, so that a task's matrix is read once and never copied.
        """
        if self.grouped:
            return self.ungroup(self.group(x_RLI) @ w_TIJ)
        return x_RLI @ w_TIJ[self.index]

    def group(self, x_RLI: Tensor) -> Tensor:
        """x (R, *, L, I) -> (T, *, places of a task · L, I), the rows of a task one after another along the length.

        Only for rows that are `grouped`.
        """
        if self.slot is not None:
            x_RLI = x_RLI.new_zeros(self.tasks * self.width, *x_RLI.shape[1:]).index_copy(0, self.slot, x_RLI)
        elif self.tasks == self.count:
            return x_RLI
        return x_RLI.unflatten(0, (self.tasks, -1)).movedim(1, -3).flatten(-3, -2)

    def ungroup(self, x_TLI: Tensor) -> Tensor:
        """What `group` gave, back to one row each."""
        if self.slot is None and self.tasks == self.count:
            return x_TLI
        places = self.width if self.slot is not None else self.count // self.tasks
        x_RLI = x_TLI.unflatten(-2, (places, -1)).movedim(-3, 1).flatten(0, 1)
        return x_RLI if self.slot is None else x_RLI[self.slot]


def _slots(index: Tensor, width: int) -> Tensor:
    """Place (R,) of every row in groups of `width`, the rows of a task in their order."""
    order = index.argsort(stable=True)
    counts = index.bincount()
    before = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(index).index_copy(0, order, index[order] * width + before)
