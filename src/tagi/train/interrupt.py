"""Ctrl-C and a scheduler's SIGTERM during training: the step in hand is finished and kept, then training ends."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping after this step; once more stops at once\n"


class Interrupted(KeyboardInterrupt):
    """Training that was told to stop, after its last step was written to `checkpoint`."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"{checkpoint} is complete; --resume goes on from there")


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """A function that tells whether a signal to stop has come.

    An exception raised by a signal's handler is lost where it falls into a destructor, so the first signal only leaves
    a mark; the second meets the handler of before. Outside the main thread, signals stay as they are.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(_number: int, _frame: FrameType | None) -> None:
        told.set()
        restore()
        with contextlib.suppress(OSError, ValueError):  # no stderr to write to
            os.write(sys.stderr.fileno(), _NOTICE)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield told.is_set
    finally:
        restore()
