"""PURE: do blocks tile a shape, so that each element lies in exactly one of them?

A tensor that was saved in chunks is complete if its chunks tile it. Where they do not, torch's
reader leaves the elements of a hole unchanged, and the last of two overlapping chunks wins.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Final

from paraload.geometry.runs import Shape

Box = tuple[Shape, Shape]  # offsets, lengths

#: torch's own limit; damaged metadata may claim any number.
_MAX_DIMENSIONS: Final = 64


def coverage_fault(shape: Shape, blocks: Iterable[Box]) -> str | None:
    """Why ``blocks`` do not tile ``shape``; ``None`` if they do.

    >>> coverage_fault((4, 2), [((0, 0), (2, 2)), ((2, 0), (2, 2))])
    >>> coverage_fault((4, 2), [((0, 0), (2, 2))])
    'no chunk has the elements from (2, 0) to (4, 2)'
    >>> coverage_fault((4,), [((0,), (3,)), ((2,), (2,))])
    'two chunks have the elements from (2,) to (3,)'
    """
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        return "its shape is impossible"
    filled = []
    for offsets, lengths in blocks:
        if not len(offsets) == len(lengths) == len(shape):
            return f"a chunk of shape {lengths} at {offsets} has another number of dimensions"
        if any(o < 0 or n < 0 or o + n > size for o, n, size in zip(offsets, lengths, shape)):  # noqa: B905 - their lengths are equal
            return f"a chunk of shape {lengths} at {offsets} does not lie inside of it"
        if 0 not in lengths:
            filled.append((offsets, lengths))
    if 0 in shape or _is_grid(shape, filled):
        return None
    if (pair := meeting_pair(filled)) is not None:
        return f"two chunks have the elements {_from_to(_common(*pair))}"
    is_full = sum(prod(lengths) for _, lengths in filled) == prod(shape)
    hole = None if is_full else _first_hole(shape, filled)
    return None if hole is None else f"no chunk has the elements {_from_to(hole)}"


@lru_cache(maxsize=4096)
def chunks_fault(shape: Shape, boxes: tuple[Box, ...]) -> str | None:
    """:func:`coverage_fault` for torch's shapes; cached: many tensors of a model are cut alike."""
    return coverage_fault(tuple(shape), [(tuple(offsets), tuple(n)) for offsets, n in boxes])


def meeting_pair(blocks: Sequence[Box]) -> tuple[Box, Box] | None:
    """Two blocks that have an element in common, if there are any."""
    dims = range(len(blocks[0][0])) if blocks else ()
    if not dims:
        return (blocks[0], blocks[1]) if len(blocks) > 1 else None
    # Sweep along the dimension with the most different offsets.
    sweep = max(dims, key=lambda dim: len({offsets[dim] for offsets, _ in blocks}))
    active: list[Box] = []
    for block in sorted(blocks, key=lambda block: block[0][sweep]):
        start = block[0][sweep]
        active = [other for other in active if other[0][sweep] + other[1][sweep] > start]
        for other in active:
            if _meet(block, other):
                return other, block
        active.append(block)
    return None


def _meet(one: Box, other: Box) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(*one, *other, strict=True))


def _is_grid(shape: Shape, blocks: list[Box], dim: int = 0) -> bool:
    """Fast check for the usual case: the blocks form slabs, each of which is such a grid again."""
    if len(blocks) == 1:
        offsets, lengths = blocks[0]
        return not any(offsets[dim:]) and lengths[dim:] == shape[dim:]
    if dim == len(shape):
        return False
    slabs: defaultdict[tuple[int, int], list[Box]] = defaultdict(list)
    for block in blocks:
        slabs[block[0][dim], block[1][dim]].append(block)
    end = 0
    for start, length in sorted(slabs):
        if start != end:
            return False
        end += length
    return end == shape[dim] and all(_is_grid(shape, slab, dim + 1) for slab in slabs.values())


def _first_hole(shape: Shape, blocks: list[Box]) -> Box | None:
    if not shape:
        return None if blocks else ((), ())
    edges = {0, shape[0]}
    for offsets, lengths in blocks:
        edges |= {offsets[0], offsets[0] + lengths[0]}
    for start, end in pairwise(sorted(edges)):
        slab = [(o[1:], n[1:]) for o, n in blocks if o[0] <= start and end <= o[0] + n[0]]
        if (hole := _first_hole(shape[1:], slab)) is not None:
            return (start, *hole[0]), (end - start, *hole[1])
    return None


def _common(one: Box, other: Box) -> Box:
    starts = tuple(map(max, one[0], other[0]))
    ends = (min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True))
    return starts, tuple(end - start for start, end in zip(starts, ends, strict=True))


def _from_to(box: Box) -> str:
    return f"from {tuple(box[0])} to {tuple(o + n for o, n in zip(*box, strict=True))}"
