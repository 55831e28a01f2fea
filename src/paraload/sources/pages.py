"""Pages of memory: which are there, where a file is mapped, and new ones made in advance.

    preadv alone   copy 4 KiB, fault, zero a page, copy 4 KiB, fault, zero a page, ...
    populate       zero all pages of the buffer; then preadv copies without a fault

A tensor that was allocated but never touched (``torch.empty``) has no pages. ``python -m benchmarks
--only fresh`` measures the gain. It also shows why huge pages (MADV_HUGEPAGE), which save even more
faults, are not used: a virtual machine may have returned its free ones to the host, and getting
them back is slower than the faults.
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Final

#: For smaller buffers, the system calls cost more than the faults.
_MIN_BYTES: Final = 256 << 10
#: Since Linux 5.14. Older kernels refuse it, and pages are made one by one.
_POPULATE_WRITE: Final = 23

_libc: Final = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
# PyDLL keeps the GIL: mincore takes less time than releasing and acquiring it.
_mincore = ctypes.PyDLL(None).mincore if sys.platform == "linux" else None


def populate(memory: memoryview) -> None:
    """Make the pages of ``memory`` if it has none; the content does not change.

    Pages that are only partly inside ``memory`` are left alone, since others may use them.
    """
    if len(memory) < _MIN_BYTES or _mincore is None:
        return
    address = address_of(memory)
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    npages = (address + len(memory) - first) // page
    if not _is_resident(first + npages // 2 * page):
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(npages * page), _POPULATE_WRITE)


def address_of(memory: memoryview) -> int:
    """Address of the first byte of ``memory``, which must be writable."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _is_resident(page: int) -> bool:
    """Whether the page at this address is in memory; ``True`` if the system cannot tell."""
    flag = ctypes.c_ubyte(1)
    if _mincore is not None:
        _mincore(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(flag))
    return bool(flag.value & 1)


def residency_is_known(path: Path) -> bool:
    """Whether ``mincore`` says which pages of the file are cached.

    For files that we neither own nor may write to, Linux reports every page as cached.
    """
    return path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK)


class FileView:
    """Maps ``nbytes`` of an open file from ``start`` on, for system calls to look at and copy from.

    Python code must not read from it: if the file was truncated or its storage fails, that kills
    the process (SIGBUS), while a system call returns an error.

    Attributes:
        address: of the first byte.

    Raises:
        OSError: the file system does not support mappings.
    """

    def __init__(self, fd: int, start: int, nbytes: int) -> None:
        skip = start % mmap.PAGESIZE
        self._mapped_bytes = skip + nbytes
        self._first_page: int = _mmap(
            None, self._mapped_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, start - skip
        )
        if self._first_page == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.address = self._first_page + skip

    def is_cached(self, at: int) -> bool:
        """Whether the page of byte ``at`` of the view, which the file must have, is cached.

        Meaningful only if :func:`residency_is_known`.
        """
        return _is_resident((self.address + at) // mmap.PAGESIZE * mmap.PAGESIZE)

    def close(self) -> None:
        """Unmap it; call this exactly once."""
        _munmap(self._first_page, self._mapped_bytes)
