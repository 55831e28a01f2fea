"""Keeps the garbage collector out of planning.

Planning makes several lasting objects for each item, and the collector walks all of them again and
again: with 50,000 items it took a third of the time, and the first collection afterwards took as
long as reading.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Not empty while `objects_frozen` has frozen the objects: gc.get_freeze_count() counts them all.
_frozen_here: list[None] = []


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in the block; afterwards it is on again if it was before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            _count_as_old()
            gc.enable()


def _count_as_old() -> None:
    """Move all objects to the oldest generation.

    Otherwise the next collection of the young walks all that was made in the pause, which took
    60 ms for the metadata of 50,000 entries. ``gc.unfreeze`` puts objects into the oldest one.
    """
    if not (_frozen_here or gc.get_freeze_count()):
        gc.freeze()
        gc.unfreeze()


@contextmanager
def collector_resumed() -> Iterator[None]:
    """Inside of a pause: collect as usual, for user code that may make any amount of garbage."""
    was_on = gc.isenabled()
    if not was_on:
        _count_as_old()
    gc.enable()
    try:
        yield
    finally:
        if not was_on:
            gc.disable()


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Collect only objects that are made in the block; those that exist already last anyway.

    Freezing moves whole lists of objects, so it takes no time. ``gc.unfreeze()`` is all-or-nothing,
    so do nothing if the program froze objects itself.
    """
    if _frozen_here or gc.get_freeze_count():
        yield
        return
    gc.freeze()
    _frozen_here.append(None)
    try:
        yield
    finally:
        _frozen_here.pop()
        gc.unfreeze()
