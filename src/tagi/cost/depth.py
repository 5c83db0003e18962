"""Counting a deep model by shallow ones: every further block costs the same."""

from collections.abc import Callable

from tagi.config import Shape


def by_depth(shape: Shape, count: Callable[[Shape], tuple[int, ...]], first: int = 1, unit: int = 1) -> tuple[int, ...]:
    """What `count` gives for a shape, each number linear in the blocks that all stacks have more.

    Args:
        first: blocks of the shallowest stack from which on that is so.
        unit: blocks after which they repeat.
    """
    spare = (min(shape.depths) - first) // unit
    if spare < 2:
        return count(shape)
    less, more = (
        count(shape.with_depths([depth - left_out * unit for depth in shape.depths])) for left_out in (spare, spare - 1)
    )
    return tuple(one + spare * (two - one) for one, two in zip(less, more, strict=True))
