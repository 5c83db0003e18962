"""Where two answers part; for the scripts of engines, so it needs nothing else."""

from collections.abc import Sequence


def scored(theirs: Sequence[int], ours: Sequence[int]) -> int:
    """Places of our answer that an engine scores on its own way: up to where the two part, that one included."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    parted = next((place for place, (one, other) in pairs if one != other), min(len(theirs), len(ours)))
    return min(parted + 1, len(theirs), len(ours))
