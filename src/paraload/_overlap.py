"""PURE: which targets of a load share memory, so that the order of writing matters.

Items of one target tensor are told apart by the blocks that they fill; different tensors by the
addresses from first to last byte, which calls two interleaved views of one memory overlapping too.
That is safe: overlapping items are only read in another, slower order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from paraload._coverage import meeting_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from paraload._geometry import Shape

__all__ = ["Block", "overlapping_items"]


class Block(NamedTuple):
    """The part of a target tensor that an item fills."""

    target: Hashable
    offsets: Shape
    lengths: Shape


def overlapping_items(
    starts: NDArray[np.int64], ends: NDArray[np.int64], block_of: Callable[[int], Block]
) -> set[int]:
    """The items whose targets share memory with another item's.

    Args:
        starts: first address of each item.
        ends: one past its last; an item without addresses has the same in both.
        block_of: what an item fills. Asked only where addresses meet, which is rare.
    """
    there = np.flatnonzero(ends > starts)
    if _are_apart(starts[there], ends[there]):
        return set()
    pairs = zip(starts[there].tolist(), ends[there].tolist(), strict=True)
    spans: dict[int, tuple[int, int]] = dict(zip(there.tolist(), pairs, strict=True))
    groups: dict[Hashable, list[tuple[int, Block]]] = {}
    for item in spans:
        block = block_of(item)
        groups.setdefault(block.target, []).append((item, block))
    hulls = []
    found: set[int] = set()
    for group in groups.values():
        items = [item for item, _ in group]
        hulls.append((min(spans[i][0] for i in items), max(spans[i][1] for i in items), items))
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


def _are_apart(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether no two spans meet: so it is with nearly every model."""
    order = np.argsort(starts, kind="stable")
    return bool(np.all(ends[order[:-1]] <= starts[order[1:]]))
