"""Bytes that a piece of work allocates on the processor, as torch's allocator reports them."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True, slots=True)
class Allocated:
    """Bytes above what was there before."""

    peak: int
    """At the worst moment."""
    kept: int
    """Still held by the result."""


def allocated(case: Callable[[], object]) -> Allocated:
    """Run a case once and count its tensors' memory, temporaries included."""
    with _without_remarks(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        result = case()
    del result
    assert run.profiler is not None and run.profiler.kineto_results is not None
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return Allocated(peak, held)


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep away what torch's profiler itself writes to the process's stderr: when it starts and stops."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
