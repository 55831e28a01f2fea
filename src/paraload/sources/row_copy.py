"""Rows out of the page cache, without what lies between them.

    read through   cache |##......|##......|  --all--> scratch --rows--> target
    copied rows    cache |##......|##......|  ----------rows-----------> target

The system copies them from a view of the file, with one call for a thousand of them. There is no
call that does it from a file; ``process_vm_writev`` does it from memory to memory, and the other
process may be this one. Where the file has been cut, or a page cannot be had, it copies less.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from paraload.geometry.runs import Run
from paraload.sources.file_view import FileView
from paraload.sources.pages import address_of

if TYPE_CHECKING:
    from numpy import uint64
    from numpy.typing import NDArray

_writev = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_writev", None)  # Linux 3.2
if _writev is not None:
    _iovec: Final = [ctypes.c_void_p, ctypes.c_ulong]
    _writev.restype = ctypes.c_ssize_t
    _writev.argtypes = [ctypes.c_int, *_iovec, *_iovec, ctypes.c_ulong]
_MAX_PIECES: Final = 1024  #: of a call (UIO_MAXIOV)


def copy_rows(fd: int, base: int, run: Run, memory: memoryview, *, is_told: bool) -> int:
    """Copy ``run``, whose ``src`` counts from byte ``base`` of the file, to where it belongs.

    Args:
        fd: a file that has all of these bytes.
        base: where in the file the payload begins.
        run: the rows.
        memory: takes them.
        is_told: :func:`~paraload.sources.pages.residency_is_told` of this file.

    Returns:
        The calls that it took; 0 if some rows are not there: they are not in the page cache, judged
        by one of each thousand, or this system has no such way.

    Raises:
        TypeError, ValueError: rows lie outside of ``memory``, or it must not be written to.
    """
    from numpy import ndarray  # noqa: PLC0415 - worker processes that need it not import it not

    # What is written to addresses must lie inside of their memory: numpy looks, and raises.
    ndarray((run.count,), f"V{run.nbytes}", memory, run.dst, (run.dst_step,))
    address = address_of(memory) + run.dst
    calls = range(0, run.count, _MAX_PIECES)
    for first in calls:
        part = replace(
            run,
            src=base + run.src + first * run.src_step,
            count=min(_MAX_PIECES, run.count - first),
        )
        if not _copied(fd, part, address + first * run.dst_step, is_told=is_told):
            return 0
    return len(calls)


def _copied(fd: int, run: Run, address: int, *, is_told: bool) -> bool:
    """Whether the rows at ``run.src`` of the file are at ``address`` now."""
    nbytes = (run.count - 1) * run.src_step + run.nbytes
    middle = run.count // 2 * run.src_step
    if _writev is None or not (is_told or _comes_at_once(fd, run.src + middle)):
        return False
    try:
        view = FileView(fd, run.src, nbytes)
    except OSError:
        return False  # files that cannot be mapped can be read
    with closing(view):
        if is_told and not view.is_cached(middle):
            return False
        rows = _pieces(view.address, run.src_step, run.nbytes, run.count)
        if run.dst_step == run.nbytes:
            places = _pieces(address, 0, run.total_bytes, 1)
        else:
            places = _pieces(address, run.dst_step, run.nbytes, run.count)
        copied: int = _writev(
            os.getpid(), rows.ctypes.data, len(rows), places.ctypes.data, len(places), 0
        )
    # In the page that a file ends in there are zeros behind its end.
    return copied == run.total_bytes and os.fstat(fd).st_size >= run.src + nbytes


def _comes_at_once(fd: int, at: int) -> bool:
    """Whether byte ``at`` can be read without waiting; who is told what is cached need not try."""
    try:
        return os.preadv(fd, (bytearray(1),), at, os.RWF_NOWAIT) == 1
    except OSError:
        return False  # BlockingIOError, or the file system does not know either


def _pieces(address: int, step: int, nbytes: int, count: int) -> NDArray[uint64]:
    """``struct iovec[count]``."""
    from numpy import arange, empty, uint64  # noqa: PLC0415 - see above

    pieces = empty((count, 2), uint64)
    pieces[:, 0] = address + arange(count) * step
    pieces[:, 1] = nbytes
    return pieces
