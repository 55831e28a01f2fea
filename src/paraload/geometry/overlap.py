"""PURE: which targets of a load share memory, so that the order of writing matters.

Items of one target tensor are compared by the blocks that they fill; different tensors by their
addresses from first to last byte. Two interleaved views of one memory therefore count as
overlapping. That is safe: overlapping items are only read in a slower order.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paraload.geometry.coverage import meeting_pair
from paraload.geometry.runs import Shape


class Block(NamedTuple):
    """The part of a target tensor that an item fills."""

    target: Hashable
    offsets: Shape
    lengths: Shape


def overlapping_items(
    starts: NDArray[np.int64], ends: NDArray[np.int64], block_of: Callable[[int], Block]
) -> set[int]:
    """The items whose targets share memory with another item's.

    Item ``i`` has the addresses ``[starts[i], ends[i])``, which may be empty. ``block_of(i)`` is
    called only if addresses overlap, which is rare.
    """
    there = np.flatnonzero(ends > starts)
    order = there[np.argsort(starts[there], kind="stable")]
    if np.all(ends[order[:-1]] <= starts[order[1:]]):
        return set()
    groups: dict[Hashable, list[tuple[int, Block]]] = {}
    for item in there.tolist():
        block = block_of(item)
        groups.setdefault(block.target, []).append((item, block))
    hulls = []
    found: set[int] = set()
    for group in groups.values():
        items = [item for item, _ in group]
        hulls.append((int(starts[items].min()), int(ends[items].max()), items))
        if len(group) > 1 and meeting_pair([block[1:] for _, block in group]) is not None:
            found.update(items)
    hulls.sort(key=lambda hull: hull[:2])
    reach, reaching = -1, list[int]()
    for first, end, items in hulls:
        if first < reach:
            found.update(items, reaching)
        if end > reach:
            reach, reaching = end, items
    return found
