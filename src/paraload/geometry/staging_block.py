"""PURE: what to stage of a slice that has too many runs to move one by one.

A small window of a kernel, cut from thousands of filters, has thousands of runs of a few elements.
It is faster to read the filters whole and cut them in memory.

    stored   |..##..|..##..|..##..|  ...       one series of rows for each filter
    region   |......|......|......|            read whole, cut by torch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paraload.geometry.runs import Run, Shape, block_bytes, packed_strides, slice_runs, source_order

#: A slice is cut in memory, rather than read run by run, if it has more series of rows than this,
_MANY_SERIES: Final = 64
#: with fewer bytes than this on average: starting such a series costs more than reading it.
_SMALL_SERIES_BYTES: Final = 16 << 10
#: Rows of a region that is cut in memory are at least this long, if the tensor has such rows.
_SHORT_ROW_BYTES: Final = 512


def is_fragmented(runs: Sequence[Run]) -> bool:
    """Whether the runs are too many and too small to be moved one by one."""
    nbytes = sum(run.total_bytes for run in runs)
    return len(runs) > _MANY_SERIES and nbytes < len(runs) * _SMALL_SERIES_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A block of the stored tensor, packed densely with its dimensions in ``order``."""

    offsets: Shape
    lengths: Shape
    order: Shape

    def nbytes(self, itemsize: int) -> int:
        return block_bytes(self.lengths, itemsize)

    def runs(self, strides: Sequence[int], itemsize: int, src: int) -> tuple[Run, ...]:
        """The runs that fill it, if the block starts at byte ``src`` of the payload."""
        return slice_runs(
            self.lengths,
            src_strides=strides,
            dst_strides=packed_strides(self.lengths, self.order),
            itemsize=itemsize,
            src=src,
        )


def staging_region(
    shape: Shape, strides: Shape, offsets: Shape, lengths: Shape, itemsize: int
) -> Region:
    """The slice itself, or whole rows around it if the slice is fragmented."""
    order = source_order(shape, strides)
    exact = Region(offsets=offsets, lengths=lengths, order=order)
    if not is_fragmented(exact.runs(strides, itemsize, 0)):
        return exact
    starts, sizes = list(offsets), list(lengths)
    run_bytes = itemsize
    for dim in reversed(order):
        if run_bytes * sizes[dim] >= _SHORT_ROW_BYTES:
            break
        starts[dim], sizes[dim] = 0, shape[dim]
        run_bytes *= shape[dim]
    return Region(offsets=tuple(starts), lengths=tuple(sizes), order=order)
