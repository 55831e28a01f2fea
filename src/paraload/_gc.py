"""The garbage collector, kept out of planning.

Planning makes several lasting objects for every item, and the collector walks all of them again
and again: with 50,000 items that was a third of the time, and the first collection after it cost as
much as reading.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collector_paused", "collector_resumed", "objects_frozen"]


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


@contextmanager
def collector_resumed() -> Iterator[None]:
    """Inside of a pause: collect as usual, for code whose garbage nobody can foresee."""
    was_on = gc.isenabled()
    gc.enable()
    try:
        yield
    finally:
        if not was_on:
            gc.disable()


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Collect only what is made from now on, not what is there: all of that lasts anyway.

    Freezing moves whole lists of objects, so it takes no time. A program that has frozen objects
    of its own is left alone, since nobody can thaw only his.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
