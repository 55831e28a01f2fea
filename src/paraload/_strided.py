"""Series of short rows, moved by numpy: a column slice has thousands of them.

    file     |##......|##......|##......|      read through, a block at a time
    scratch  |##......|##......|##             in the processor's cache
    target   |##|##|##|                        the rows alone, in one strided copy

A row that is placed by a statement of Python costs more than reading it does, and a statement for
each row lets one thread run at a time. numpy is imported when the first series is met: a worker
process that reads whole tensors need not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload._geometry import Run

__all__ = ["copy_runs", "gather", "is_gathered"]

#: From so many rows on, one strided copy is faster than a statement for each.
_MIN_ROWS: Final = 8
#: Longer rows are faster read straight to their places than copied once more.
_MAX_ROW_BYTES: Final = 16 << 10
#: Of 64 KiB to 4 MiB, 1 MiB and more were the fastest; this much stays in the processor's cache.
_SCRATCH_BYTES: Final = 1 << 20


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


def gather(
    run: Run,
    memory: memoryview,
    read_into: Callable[[int, Sequence[memoryview]], None],
    base: int,
    seen: Callable[[memoryview], None] | None = None,
) -> None:
    """Read through ``run``, gaps too, and put its rows where they belong.

    Args:
        run: with rows that are not further apart than they are worth reading.
        memory: of the target.
        read_into: fills buffers with the bytes from a position of the file on.
        base: where in the file the payload begins.
        seen: is shown all bytes that were read, in order.
    """
    per_block = max(1, _SCRATCH_BYTES // run.src_step)
    rows_left, src, dst = run.count, run.src, run.dst
    scratch = memoryview(bytearray((min(per_block, rows_left) - 1) * run.src_step + run.nbytes))
    while rows_left:
        count = min(per_block, rows_left)
        block = scratch[: (count - 1) * run.src_step + run.nbytes]
        read_into(base + src, (block,))
        if seen is not None:
            seen(block)
        part = _part(run, dst, count)
        _copy_rows(part, block, 0, memory)
        rows_left -= count
        src += count * run.src_step
        dst += count * run.dst_step


def _part(run: Run, dst: int, count: int) -> Run:
    return type(run)(0, dst, run.nbytes, count, run.src_step, run.dst_step)


def _copy_rows(run: Run, data: memoryview, src: int, memory: memoryview) -> None:
    """One strided copy; numpy refuses rows that do not lie inside of their buffers."""
    from numpy import ndarray  # noqa: PLC0415 - see above

    shape, row = (run.count,), f"V{run.nbytes}"
    rows = ndarray(shape, row, data, src, (run.src_step,))
    ndarray(shape, row, memory, run.dst, (run.dst_step,))[...] = rows
