"""Ctrl-C while workers are started or ended: it waits until that is done.

A ``KeyboardInterrupt`` can come between any two instructions. Between the start of a process and
the line that notes its number it would leave a process that nobody knows of.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["interrupts_blocked", "interrupts_deferred"]


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Handle SIGINT at the end of the block, if there is a handler and this is the main thread."""
    handler: Any = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            # Without the frame that was interrupted: it would keep that frame's locks alive.
            handler(caught[-1], None)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started in this block never see the terminal's Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
