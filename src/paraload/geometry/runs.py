"""PURE: from a slice of a strided tensor to byte runs.

A *run* is a range of bytes that is contiguous on both sides: in the stored payload (``src``) and in
the memory that receives it (``dst``). Offsets are in bytes; ranges are half-open. A regular series
of equal runs, such as the rows of a column slice, is one :class:`Run` with a count, so a slice of a
million rows takes a handful of objects.

    stored  [4, 6]   ......        slice rows 1:3, columns 2:5
                     ..###.        -> Run(src=8, dst=0, nbytes=3, count=2, src_step=6, dst_step=3)
                     ..###.
                     ......
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` runs of ``nbytes``, the k-th from ``src + k*src_step`` to ``dst + k*dst_step``."""

    src: int
    dst: int
    nbytes: int
    count: int = 1
    src_step: int = 0
    dst_step: int = 0

    @property
    def total_bytes(self) -> int:
        return self.nbytes * self.count


def contiguous_strides(shape: Sequence[int]) -> Shape:
    """Row-major strides in elements.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    return packed_strides(shape, range(len(shape)))


def source_order(shape: Sequence[int], strides: Sequence[int]) -> Shape:
    """The dimensions in the order of the stored bytes, slowest first."""
    return tuple(sorted(range(len(shape)), key=lambda dim: (-strides[dim], -shape[dim], dim)))


def packed_strides(lengths: Sequence[int], order: Sequence[int]) -> Shape:
    """Strides in elements that pack ``lengths`` densely with dimensions in ``order``.

    >>> packed_strides((2, 3), (1, 0))
    (1, 2)
    """
    strides = [0] * len(lengths)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(lengths[dim], 1)
    return tuple(strides)


def slice_runs(
    lengths: Sequence[int],
    *,
    src_strides: Sequence[int],
    dst_strides: Sequence[int],
    itemsize: int,
    src: int,
) -> tuple[Run, ...]:
    """The runs of a block of ``lengths`` elements, in the order of the stored bytes.

    The block starts at byte ``src`` of the payload. Strides are in elements; those of the source
    are at least 1 where the length is more than 1.
    """
    if 0 in lengths:
        return ()
    order = source_order(lengths, src_strides)
    steps = ((lengths[d], src_strides[d] * itemsize, dst_strides[d] * itemsize) for d in order)
    dims = _merged(steps)
    nbytes = itemsize
    if dims and dims[-1][1] == itemsize and dims[-1][2] == itemsize:
        nbytes *= dims.pop()[0]
    count, src_step, dst_step = dims.pop() if dims else (1, 0, 0)
    return tuple(
        Run(
            src + sum(k * dim[1] for k, dim in zip(at, dims, strict=True)),
            sum(k * dim[2] for k, dim in zip(at, dims, strict=True)),
            nbytes,
            count,
            src_step,
            dst_step,
        )
        for at in itertools.product(*(range(size) for size, _, _ in dims))
    )


def _merged(dims: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Join neighbouring dimensions that are contiguous on both sides."""
    merged: list[tuple[int, int, int]] = []
    for size, src_step, dst_step in dims:
        if size == 1:
            continue
        if merged and merged[-1][1:] == (size * src_step, size * dst_step):
            size *= merged.pop()[0]  # noqa: PLW2901
        merged.append((size, src_step, dst_step))
    return merged


def block_bytes(lengths: Sequence[int], itemsize: int) -> int:
    return math.prod(lengths) * itemsize


def extent_bytes(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Bytes from the first element to one past the last; 0 for an empty shape."""
    if 0 in shape:
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) * itemsize


def split_runs(runs: Sequence[Run], max_bytes: int) -> list[tuple[Run, ...]]:
    """Cut runs, in order, into groups of at most ``max_bytes`` payload bytes each.

    >>> [sum(r.total_bytes for r in g) for g in split_runs((Run(0, 0, 10),), 4)]
    [4, 4, 2]
    """
    groups: list[tuple[Run, ...]] = []
    current: list[Run] = []
    room = max_bytes
    for run in _rows_that_fit(runs, max_bytes):
        rest = run
        while rest.total_bytes > room:
            count = room // rest.nbytes
            if count:
                current.append(replace(rest, count=count))
            groups.append(tuple(current))
            current, room = [], max_bytes
            src, dst = rest.src + count * rest.src_step, rest.dst + count * rest.dst_step
            rest = replace(rest, src=src, dst=dst, count=rest.count - count)
        current.append(rest)
        room -= rest.total_bytes
    if current:
        groups.append(tuple(current))
    return groups


def _rows_that_fit(runs: Sequence[Run], max_bytes: int) -> Iterator[Run]:
    """Cut rows that are longer than ``max_bytes``; this needs a run for each."""
    for run in runs:
        if run.nbytes <= max_bytes:
            yield run
            continue
        for src, dst, nbytes in rows((run,)):
            for at in range(0, nbytes, max_bytes):
                yield Run(src + at, dst + at, min(max_bytes, nbytes - at))


def rows(runs: Iterable[Run]) -> Iterator[tuple[int, int, int]]:
    """Every single run as ``(src, dst, nbytes)``, in order."""
    for run in runs:
        for k in range(run.count):
            yield run.src + k * run.src_step, run.dst + k * run.dst_step, run.nbytes


def plan_reads(
    runs: Sequence[Run], *, max_gap_bytes: int, max_read_bytes: int, max_pieces: int
) -> Iterator[tuple[int, list[tuple[int | None, int]]]]:
    """Join neighbouring runs into scattered reads, and cut long ones.

    Args:
        runs: in ascending order of ``src``.
        max_gap_bytes: gaps up to this long are read and dropped rather than skipped.
        max_read_bytes: upper bound of one read.
        max_pieces: upper bound of its pieces (``IOV_MAX`` of the system is 1024).

    Yields:
        the first byte of a read, and ``(dst, nbytes)`` of its pieces; of a gap, ``dst`` is None.
    """
    start = end = 0
    pieces: list[tuple[int | None, int]] = []
    for src, dst, nbytes in rows(_rows_that_fit(runs, max_read_bytes)):
        gap = src - end
        if pieces and not (
            0 <= gap <= max_gap_bytes
            and src + nbytes - start <= max_read_bytes
            and len(pieces) + 2 <= max_pieces
        ):
            yield start, pieces
            pieces = []
        if not pieces:
            start = src
        elif gap:
            pieces.append((None, gap))
        pieces.append((dst, nbytes))
        end = src + nbytes
    if pieces:
        yield start, pieces


def packed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The same sources, with destinations packed one after another."""
    result: list[Run] = []
    dst = 0
    for run in runs:
        result.append(replace(run, dst=dst, dst_step=run.nbytes))
        dst += run.total_bytes
    return tuple(result)


def unpacked(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs that move bytes from where :func:`packed` put them to their destinations."""
    pairs = zip(packed(runs), runs, strict=True)
    return tuple(replace(run, src=there.dst, src_step=there.dst_step) for there, run in pairs)


def split_block(
    lengths: Sequence[int], order: Sequence[int], *, itemsize: int, max_bytes: int
) -> Iterator[tuple[Shape, Shape]]:
    """Cut a block into parts ``(offsets, lengths)`` of at most ``max_bytes``, slowest dim first.

    >>> list(split_block((4, 3), (0, 1), itemsize=1, max_bytes=6))
    [((0, 0), (2, 3)), ((2, 0), (2, 3))]
    """
    nbytes = block_bytes(lengths, itemsize)
    dim = next((dim for dim in order if lengths[dim] > 1), None)
    if nbytes <= max_bytes or dim is None:
        yield (0,) * len(lengths), tuple(lengths)
        return
    step = max(1, max_bytes * lengths[dim] // nbytes)
    for at in range(0, lengths[dim], step):
        part = list(lengths)
        part[dim] = min(step, lengths[dim] - at)
        for offsets, sizes in split_block(part, order, itemsize=itemsize, max_bytes=max_bytes):
            yield (*offsets[:dim], offsets[dim] + at, *offsets[dim + 1 :]), sizes
