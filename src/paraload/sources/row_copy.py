"""Copies narrow rows out of the page cache, without the bytes between them.

    read through   cache |##......|##......|  --all--> scratch --rows--> target
    copied rows    cache |##......|##......|  ----------rows-----------> target

No system call scatters rows of a file, so they are copied from a mapping of it.

leased     This process copies them, as fast as memory allows. If the file were truncated meanwhile,
           that would end the process (SIGBUS). So the file is leased, see fcntl(2): nobody can open
           it for writing, or truncate it, before the lease ends, a moment later. Only the owner of
           a file gets one.
by system  ``process_vm_writev`` copies a thousand pieces of memory at once between two processes,
           which may be the same one. If the file is truncated, it copies less.
"""

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

from paraload.geometry.runs import Run
from paraload.geometry.strided_copy import copy_runs, may_gather
from paraload.sources.pages import FileView, address_of

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_writev: Any = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_writev", None)  # Linux 3.2
if _writev is not None:
    _iovec: Final = [ctypes.c_void_p, ctypes.c_ulong]
    _writev.restype = ctypes.c_ssize_t
    _writev.argtypes = [ctypes.c_int, *_iovec, *_iovec, ctypes.c_ulong]
_MAX_PIECES: Final = 1024  #: of a call (UIO_MAXIOV)
#: Rows further apart are as fast one by one: finding each in the page cache is most of the work.
_MAX_STEP_BYTES: Final = 512 << 10
#: Reading through less than this takes no longer than the mapping.
_MIN_BYTES: Final = 64 << 10
#: Mapped pages are looked up and copied this much at a time.
_BLOCK_BYTES: Final = 4 << 20
#: For rows further apart, the system finds a page sooner than this process maps all of them.
_MAX_LEASED_STEP_BYTES: Final = 64 << 10
#: If rows take more than this part of what is read, reading through is as fast. Below, a lease is
#: twice as fast where files were written on this host; it is no faster where the page cache was
#: filled by reading, in small folios.
_MAX_LEASED_PART: Final = 0.5
#: The system takes as long to copy a row as to read through twice its length and this much, if rows
#: are packed in the target. Measured with page caches of large folios (ext4 of Linux 6.18), where
#: reading through is cheap; before them, copying paid from a third of this on.
_PACKED_ROW_COSTS_BYTES: Final = 7 << 10
#: The same if they are not packed.
_SPREAD_ROW_COSTS_BYTES: Final = 16 << 10


def copy_rows(
    fd: int,
    base: int,
    wanted: Sequence[tuple[Run, memoryview]],
    *,
    residency_known: bool,
    may_lease: bool,
) -> int:
    """Copy rows to memory, if that is faster than reading through them.

    ``wanted`` are runs of the same rows, each with its memory; their ``src`` counts from byte
    ``base`` of the file. ``may_lease``: a lease can be asked for, since no other host can truncate
    the file.

    Returns:
        How many copies were made; 0 if some rows were not copied, because they are not in the page
        cache (one page of each block is checked) or the system cannot do it.

    Raises:
        TypeError, ValueError: rows lie outside of their memory, or it is read-only.
    """
    runs = [run for run, _ in wanted]
    step = runs[0].src_step
    first = min(run.src for run in runs)
    last = max(run.src + run.nbytes for run in runs) + (runs[0].count - 1) * step
    if not all(map(may_gather, runs)) or step > _MAX_STEP_BYTES or last - first < _MIN_BYTES:
        return 0
    _require_room(wanted)
    with ExitStack() as stack:
        is_leased = may_lease and _are_worth_a_lease(runs) and stack.enter_context(_leased(fd))
        if not (is_leased or _are_far_apart(runs)) or not _has_bytes(fd, base + last):
            return 0
        try:
            view = stack.enter_context(closing(FileView(fd, base + first, last - first)))
        except OSError:
            return 0  # such files can still be read
        pages = _Pages(fd, view, base + first, residency_known, is_leased)
        parts = [replace(run, src=run.src - first) for run in runs]
        memories = [memory for _, memory in wanted]
        per_block = min(_MAX_PIECES, max(1, _BLOCK_BYTES // step))
        blocks = range(0, runs[0].count, per_block)
        are_copied = all(
            pages.copy([_rows_of(run, row, per_block) for run in parts], memories) for row in blocks
        )
        # Without a lease it may have been truncated. The rest of its last page is zeros.
        return len(blocks) * len(runs) if are_copied and _has_bytes(fd, base + last) else 0


def _rows_of(run: Run, row: int, rows: int) -> Run:
    """At most ``rows`` of ``run``, from number ``row`` on."""
    src, dst = run.src + row * run.src_step, run.dst + row * run.dst_step
    return replace(run, src=src, dst=dst, count=min(rows, run.count - row))


class _Pages(NamedTuple):
    """The mapped pages from byte ``start`` of the file on, and what is known of them."""

    fd: int
    view: FileView
    start: int
    residency_known: bool
    is_leased: bool

    def copy(self, runs: Sequence[Run], memories: Sequence[memoryview]) -> bool:
        """Copy ``runs`` of the same rows from the view; whether all were copied."""
        middle = runs[0].src + runs[0].count // 2 * runs[0].src_step
        if self.residency_known:
            is_cached = self.view.is_cached(middle)
        else:
            is_cached = _can_read_at_once(self.fd, self.start + middle)
        if not is_cached:
            return False
        if not self.is_leased:
            return all(map(self._written, runs, memories))
        first = min(run.src for run in runs)
        last = max(run.src + (run.count - 1) * run.src_step + run.nbytes for run in runs)
        if not self.view.load(first, last - first):
            return False
        for run, memory in zip(runs, memories, strict=True):
            copy_runs((run,), self.view.memory, memory)
        return True

    def _written(self, run: Run, memory: memoryview) -> bool:
        """Have the kernel copy the rows of ``run``; whether it copied all."""
        target = address_of(memory) + run.dst
        rows = _pieces(self.view.address + run.src, run.src_step, run.nbytes, run.count)
        if run.dst_step == run.nbytes:
            places = _pieces(target, 0, run.total_bytes, 1)
        else:
            places = _pieces(target, run.dst_step, run.nbytes, run.count)
        copied: int = _writev(
            os.getpid(), rows.ctypes.data, len(rows), places.ctypes.data, len(places), 0
        )
        return copied == run.total_bytes


def _has_bytes(fd: int, end: int) -> bool:
    """Whether the file reaches to byte ``end``."""
    return os.fstat(fd).st_size >= end


def _require_room(wanted: Sequence[tuple[Run, memoryview]]) -> None:
    """The kernel writes to any address, so numpy checks that the rows fit into their memory."""
    from numpy import ndarray  # noqa: PLC0415 - spares worker processes the import

    for run, memory in wanted:
        address_of(memory)  # refuses memory that is read-only
        ndarray((run.count,), f"V{run.nbytes}", memory, run.dst, (run.dst_step,))


def _are_worth_a_lease(runs: Sequence[Run]) -> bool:
    step, wanted_bytes = runs[0].src_step, sum(run.nbytes for run in runs)
    return step <= _MAX_LEASED_STEP_BYTES and wanted_bytes <= _MAX_LEASED_PART * step


def _are_far_apart(runs: Sequence[Run]) -> bool:
    """Whether the system finds each row in the page cache in less time than reading through."""
    saved_bytes = runs[0].src_step
    for run in runs:
        is_packed = run.dst_step == run.nbytes
        saved_bytes -= 2 * run.nbytes
        saved_bytes -= _PACKED_ROW_COSTS_BYTES if is_packed else _SPREAD_ROW_COSTS_BYTES
    return _writev is not None and saved_bytes >= 0


@contextmanager
def _leased(fd: int) -> Iterator[bool]:
    """Try to lease the file; whether it is.

    The lease belongs to an open file of its own, so that threads do not end each other's.
    """
    lease = -1
    try:
        try:
            lease = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            # The kernel asks for the lease by this signal, which is ignored by default. The usual
            # one, SIGIO, ends the process.
            fcntl.fcntl(lease, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            is_leased = True
        except (OSError, AttributeError):  # another's file, open for writing; another system
            is_leased = False
        yield is_leased
    finally:
        if lease >= 0:
            os.close(lease)


def _can_read_at_once(fd: int, at: int) -> bool:
    """Whether byte ``at`` can be read without waiting for the storage."""
    try:
        return os.preadv(fd, (bytearray(1),), at, os.RWF_NOWAIT) == 1
    except OSError:
        return False  # EAGAIN, or the file system does not support the flag


def _pieces(address: int, step: int, nbytes: int, count: int) -> Any:
    """``struct iovec[count]`` as a numpy array."""
    from numpy import arange, empty, uint64  # noqa: PLC0415 - as above

    pieces = empty((count, 2), uint64)
    pieces[:, 0] = address + arange(count) * step
    pieces[:, 1] = nbytes
    return pieces
