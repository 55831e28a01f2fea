"""Copies narrow rows out of the page cache, without the bytes between them.

    read through   cache |##......|##......|  --all--> scratch --rows--> target
    copied rows    cache |##......|##......|  ----------rows-----------> target

No system call scatters rows of a file, but ``process_vm_writev`` copies a thousand pieces of memory
at once between two processes, which may be the same one. So rows are copied from a mapping of the
file. If the file was truncated or a page cannot be loaded, the call copies less.
"""

import ctypes
import os
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from paraload.geometry.runs import Run
from paraload.sources.pages import FileView, address_of

_writev = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_writev", None)  # Linux 3.2
if _writev is not None:
    _iovec: Final = [ctypes.c_void_p, ctypes.c_ulong]
    _writev.restype = ctypes.c_ssize_t
    _writev.argtypes = [ctypes.c_int, *_iovec, *_iovec, ctypes.c_ulong]
_MAX_PIECES: Final = 1024  #: of a call (UIO_MAXIOV)


def copy_rows(fd: int, base: int, run: Run, memory: memoryview, *, residency_known: bool) -> int:
    """Copy the rows of ``run`` to ``memory``; its ``src`` counts from byte ``base`` of the file.

    The file must have all of these bytes.

    Returns:
        Number of system calls; 0 if some rows were not copied, because they are not in the page
        cache (one row of each thousand is checked) or the system cannot do it.

    Raises:
        TypeError, ValueError: rows lie outside of ``memory``, or it is read-only.
    """
    from numpy import ndarray  # noqa: PLC0415 - spares worker processes the import

    # The kernel writes to any address, so numpy checks that the rows fit into the memory.
    ndarray((run.count,), f"V{run.nbytes}", memory, run.dst, (run.dst_step,))
    address = address_of(memory) + run.dst
    calls = range(0, run.count, _MAX_PIECES)
    for first in calls:
        src = base + run.src + first * run.src_step
        part = replace(run, src=src, count=min(_MAX_PIECES, run.count - first))
        if not _copied(fd, part, address + first * run.dst_step, residency_known=residency_known):
            return 0
    return len(calls)


def _copied(fd: int, run: Run, address: int, *, residency_known: bool) -> bool:
    """Try to copy the rows at ``run.src`` of the file to ``address``."""
    nbytes = (run.count - 1) * run.src_step + run.nbytes
    middle = run.count // 2 * run.src_step
    if _writev is None or not (residency_known or _can_read_at_once(fd, run.src + middle)):
        return False
    try:
        view = FileView(fd, run.src, nbytes)
    except OSError:
        return False  # such files can still be read
    with closing(view):
        if residency_known and not view.is_cached(middle):
            return False
        rows = _pieces(view.address, run.src_step, run.nbytes, run.count)
        if run.dst_step == run.nbytes:
            places = _pieces(address, 0, run.total_bytes, 1)
        else:
            places = _pieces(address, run.dst_step, run.nbytes, run.count)
        copied: int = _writev(
            os.getpid(), rows.ctypes.data, len(rows), places.ctypes.data, len(places), 0
        )
    # The last page of a truncated file is padded with zeros.
    return copied == run.total_bytes and os.fstat(fd).st_size >= run.src + nbytes


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
