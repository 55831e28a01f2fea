"""Series of short rows: a column slice has thousands of them.

    gather   file     |##......|##......|##......|    read through, a block at a time
             scratch  |##......|##......|##           in the processor's cache
             target   |##|##|##|                      the rows alone, in one strided copy

    pick     file     |##......|##......|##......|    in the page cache
             target   |##|##|##|                      the rows alone, copied by the system

A row that is placed by a statement of Python costs more than reading it does, and a statement for
each row lets one thread run at a time. numpy is imported when the first series is met: a worker
process that reads whole tensors need not pay for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload._geometry import Run

__all__ = ["copy_runs", "gather", "is_gathered", "pick"]

#: From so many rows on, one strided copy is faster than a statement for each.
_MIN_ROWS: Final = 8
#: Longer rows are faster read straight to their places than copied once more.
_MAX_ROW_BYTES: Final = 16 << 10
#: Of 64 KiB to 4 MiB, 1 MiB and more were the fastest; this much stays in the processor's cache.
_SCRATCH_BYTES: Final = 1 << 20
#: To pick a row takes as long as to read through so much, where rows lie together in the target...
_PACKED_ROW_COSTS_BYTES: Final = 2 << 10
#: ...and where they do not.
_SPREAD_ROW_COSTS_BYTES: Final = 12 << 10
#: Rows so far apart are as fast one by one: to find each of them in the cache is most of the work.
_MAX_PICKED_STEP_BYTES: Final = 512 << 10


def copy_runs(runs: Sequence[Run], data: memoryview, memory: memoryview) -> int:
    """Copy ``runs`` from ``data`` to ``memory``; the number of bytes."""
    copied = 0
    for run in runs:
        if run.count >= _MIN_ROWS:
            _copy_rows(run, data, run.src, memory)
        else:
            for k in range(run.count):
                src, dst = run.src + k * run.src_step, run.dst + k * run.dst_step
                memory[dst : dst + run.nbytes] = data[src : src + run.nbytes]
        copied += run.total_bytes
    return copied


def is_gathered(run: Run, max_gap_bytes: int) -> bool:
    """Whether :func:`gather` is the fastest way to read ``run``."""
    gap = run.src_step - run.nbytes
    return run.count >= _MIN_ROWS and run.nbytes <= _MAX_ROW_BYTES and 0 <= gap <= max_gap_bytes


def pick(
    wanted: Sequence[tuple[Run, memoryview]],
    read_rows: Callable[[int, Run, memoryview], bool],
    base: int,
) -> bool:
    """Read rows without what lies between them, if it is faster.

    Args:
        wanted: runs of the same rows, and the memory that each goes to.
        read_rows: reads a run from a position of the file on, or says that it cannot.
        base: where in the file the payload begins.

    Returns:
        Whether all of them are where they belong; if not, read them in another way.
    """
    skipped_bytes = wanted[0][0].src_step
    for run, _ in wanted:
        is_packed = run.dst_step == run.nbytes
        skipped_bytes -= run.nbytes
        skipped_bytes -= _PACKED_ROW_COSTS_BYTES if is_packed else _SPREAD_ROW_COSTS_BYTES
        if run.count < _MIN_ROWS or run.nbytes > _MAX_ROW_BYTES:
            return False
    if skipped_bytes < 0 or wanted[0][0].src_step > _MAX_PICKED_STEP_BYTES:
        return False
    return all(read_rows(base, run, memory) for run, memory in wanted)


def gather(
    wanted: Sequence[tuple[Run, memoryview]],
    read_into: Callable[[int, Sequence[memoryview]], None],
    base: int,
    seen: Callable[[memoryview], None] | None = None,
) -> None:
    """Read through rows, gaps too, and put what is wanted of them where it belongs.

    Args:
        wanted: runs and the memory that each goes to; they agree in ``count`` and ``src_step``, and
            begin in the same row.
        read_into: fills buffers with the bytes from a position of the file on.
        base: where in the file the payload begins.
        seen: is shown all bytes that were read, in order.
    """
    n_rows, step = wanted[0][0].count, wanted[0][0].src_step
    first = min(run.src for run, _ in wanted)
    width = max(run.src + run.nbytes for run, _ in wanted) - first
    per_block = min(n_rows, max(1, _SCRATCH_BYTES // step))
    scratch = memoryview(bytearray((per_block - 1) * step + width))
    for row in range(0, n_rows, per_block):
        count = min(per_block, n_rows - row)
        block = scratch[: (count - 1) * step + width]
        read_into(base + first + row * step, (block,))
        if seen is not None:
            seen(block)
        for run, memory in wanted:
            part = replace(run, dst=run.dst + row * run.dst_step, count=count)
            _copy_rows(part, block, run.src - first, memory)


def _copy_rows(run: Run, data: memoryview, src: int, memory: memoryview) -> None:
    """One strided copy; numpy refuses rows that do not lie inside of their buffers."""
    from numpy import ndarray  # noqa: PLC0415 - see above

    shape, row = (run.count,), f"V{run.nbytes}"
    rows = ndarray(shape, row, data, src, (run.src_step,))
    ndarray(shape, row, memory, run.dst, (run.dst_step,))[...] = rows
