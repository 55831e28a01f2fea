"""The garbage collector, kept out of planning.

Planning makes several lasting objects for every item, and the collector walks all of them again and
again: with 50,000 items that was a third of the time.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Make lasting objects without garbage collection; it is on again afterwards if it was."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
