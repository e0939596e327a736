"""Deferred signals: a run stops between two rounds, not in the middle of one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD = b"\nStopping when this round is done and saved; once more stops at once.\n"


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Context manager that defers Ctrl-C (SIGINT) and SIGTERM.

    The second time they end the block. Off the main thread, where signals cannot be
    caught, nothing is kept.

    Yields:
      A function that tells whether the block was asked to stop.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(number, frame):
        asked.set()
        # Not print: the signal may have come in the middle of one.
        os.write(2, _TOLD)
        restore()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        restore()
