"""Keeps the garbage collector out of planning.

Planning makes several lasting objects for each item, and the collector walks all of them again and
again: with 50,000 items it took a third of the time, and the first collection afterwards took as
long as reading.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Not empty inside `objects_frozen`, where gc.get_freeze_count() would take 30 ms.
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
    """Move all objects to the oldest generation, where ``gc.unfreeze`` puts them.

    Otherwise the next young collection walks every object that was made during the pause, which
    took 60 ms for the metadata of 50,000 entries.
    """
    if not (_frozen_here or gc.get_freeze_count()):
        gc.freeze()
        gc.unfreeze()


@contextmanager
def collector_resumed() -> Iterator[None]:
    """Inside a pause: collect as usual, for user code that may make any amount of garbage."""
    if gc.isenabled():
        yield
        return
    _count_as_old()
    gc.enable()
    try:
        yield
    finally:
        gc.disable()


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Collect only objects that are made in the block, since the others live on anyway.

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
