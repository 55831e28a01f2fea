"""Pages for memory that has none: all at once, rather than by a fault for each 4 KiB.

    preadv alone   copy 4 KiB, fault, zero a page, copy 4 KiB, fault, zero a page, ...
    populate       zero all pages of the piece; then preadv copies without a fault

A tensor that was made and never touched (``torch.empty``) has no pages. ``python -m benchmarks
--only fresh`` shows what this brings; and that huge pages (MADV_HUGEPAGE), which save more faults
still, can be far slower than none: a virtual machine may have given its free ones to the host.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Final

#: Less memory has so few pages that asking costs more than it saves.
_MIN_BYTES: Final = 256 << 10
#: Linux 5.14. Older kernels refuse, and the pages come one by one.
_POPULATE_WRITE: Final = 23
_IS_LINUX: Final = sys.platform == "linux"

# With Python's lock held: the question takes less than giving the lock away and getting it back.
_mincore = ctypes.PyDLL(None).mincore if _IS_LINUX else None
_madvise = ctypes.CDLL(None).madvise


def populate(memory: memoryview) -> None:
    """Give ``memory`` its pages, if it has none yet. Its content stays, whatever it is.

    Pages that begin or end outside of ``memory`` are left alone: others may use them.
    """
    if len(memory) < _MIN_BYTES or _mincore is None:
        return
    address = address_of(memory)
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    npages = (address + len(memory) - first) // page
    if not is_resident(first + npages // 2 * page):
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(npages * page), _POPULATE_WRITE)


def address_of(memory: memoryview) -> int:
    """Where ``memory``, which can be written to, begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def is_resident(page: int) -> bool:
    """Whether the page at this address is in memory; ``True`` also where the system cannot tell."""
    flag = ctypes.c_ubyte(1)
    if _mincore is not None:
        _mincore(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(flag))
    return bool(flag.value & 1)


def residency_is_told(path: Path) -> bool:
    """Whether the system tells us what of the file at ``path`` is in the page cache.

    Of files that are neither ours nor ours to write it says that everything is.

    Raises:
        OSError: the file cannot be looked at.
    """
    return path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK)
