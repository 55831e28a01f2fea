"""Reads of many short rows: a column slice has thousands of them.

    gather   file     |##......|##......|##......|    read through, a block at a time
             scratch  |##......|##......|##           in the processor's cache
             target   |##|##|##|                      the rows alone, in one strided copy

    pick     file     |##......|##......|##......|    in the page cache
             target   |##|##|##|                      the rows alone, copied by the system

A Python statement for each row costs more than reading it, and holds the GIL meanwhile. numpy is
imported with the first such series: a worker process that reads whole tensors does not need it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from paraload.geometry.runs import Run

#: From this many rows on, one strided copy is faster than a statement for each row.
_MIN_ROWS: Final = 8
#: Longer rows are faster without the additional copy.
_MAX_ROW_BYTES: Final = 16 << 10
#: Of 64 KiB to 4 MiB, 1 MiB and more were the fastest; 1 MiB stays in the processor's cache.
_SCRATCH_BYTES: Final = 1 << 20
#: Picking a row takes as long as reading through twice its length and this much, if rows are packed
#: in the target. Measured with page caches of large folios (ext4 of Linux 6.18), where reading
#: through is cheap; before them, picking paid from a third of this on.
_PACKED_ROW_COSTS_BYTES: Final = 7 << 10
#: The same if they are not packed.
_SPREAD_ROW_COSTS_BYTES: Final = 16 << 10
#: Rows further apart are as fast one by one: finding each in the page cache is most of the work.
_MAX_PICKED_STEP_BYTES: Final = 512 << 10


def copy_runs(runs: Sequence[Run], data: memoryview, memory: memoryview) -> int:
    """Copy ``runs`` from ``data`` to ``memory`` and return the number of bytes."""
    copied = 0
    for run in runs:
        if run.count >= _MIN_ROWS:
            _copy_rows(run, data, memory)
        else:
            for k in range(run.count):
                src, dst = run.src + k * run.src_step, run.dst + k * run.dst_step
                memory[dst : dst + run.nbytes] = data[src : src + run.nbytes]
        copied += run.total_bytes
    return copied


def _copy_rows(run: Run, data: memoryview, memory: memoryview) -> None:
    from numpy import ndarray  # noqa: PLC0415 - see above

    # numpy refuses rows that do not lie inside their buffers.
    shape, row = (run.count,), f"V{run.nbytes}"
    rows = ndarray(shape, row, data, run.src, (run.src_step,))
    ndarray(shape, row, memory, run.dst, (run.dst_step,))[...] = rows


def is_gathered(run: Run, max_gap_bytes: int) -> bool:
    """Whether :func:`gather` is the fastest way to read ``run``."""
    gap = run.src_step - run.nbytes
    return run.count >= _MIN_ROWS and run.nbytes <= _MAX_ROW_BYTES and 0 <= gap <= max_gap_bytes


def pick(
    wanted: Sequence[tuple[Run, memoryview]],
    read_rows: Callable[[int, Run, memoryview], bool],
    base: int,
) -> bool:
    """Read rows of the payload at ``base`` without the bytes between them, if that is faster.

    ``wanted`` are runs of the same rows, each with its memory. ``read_rows`` reads one of them and
    returns whether it could. Returns ``False`` if rows are missing, which must then be gathered.
    """
    step = skipped_bytes = wanted[0][0].src_step
    for run, _ in wanted:
        is_packed = run.dst_step == run.nbytes
        skipped_bytes -= 2 * run.nbytes
        skipped_bytes -= _PACKED_ROW_COSTS_BYTES if is_packed else _SPREAD_ROW_COSTS_BYTES
        if run.count < _MIN_ROWS or run.nbytes > _MAX_ROW_BYTES:
            return False
    if skipped_bytes < 0 or step > _MAX_PICKED_STEP_BYTES:
        return False
    return all(read_rows(base, run, memory) for run, memory in wanted)


def gather(
    wanted: Sequence[tuple[Run, memoryview]],
    read_into: Callable[[int, Sequence[memoryview]], None],
    base: int,
    *,
    least_bytes: int = 0,
) -> None:
    """Read through rows of the payload at ``base``, gaps included; copy the rows to their places.

    ``wanted`` are runs of the same rows, each with its memory. ``read_into`` fills buffers from a
    file position. No read is shorter than ``least_bytes``, as far as there are rows.
    """
    from numpy import empty, uint8  # noqa: PLC0415 - see above

    n_rows, step = wanted[0][0].count, wanted[0][0].src_step
    first = min(run.src for run, _ in wanted)
    width = max(run.src + run.nbytes for run, _ in wanted) - first
    per_block = min(n_rows, max(1, max(_SCRATCH_BYTES, least_bytes) // step))
    # Not a bytearray, which is zeroed first.
    scratch = empty((per_block - 1) * step + width, uint8).data
    for row in range(0, n_rows, per_block):
        count = min(per_block, n_rows - row)
        block = scratch[: (count - 1) * step + width]
        read_into(base + first + row * step, (block,))
        for run, memory in wanted:
            dst = run.dst + row * run.dst_step
            _copy_rows(replace(run, src=run.src - first, dst=dst, count=count), block, memory)
