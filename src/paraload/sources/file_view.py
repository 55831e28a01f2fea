"""A part of a file among the addresses of this process, for the system to look at and copy from.

Nobody here reads from one: where a file has been cut, or its storage fails, a program that reads
from its mapping is killed (SIGBUS). A system call that meets the same returns an error.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Final

from paraload.sources.pages import is_resident

if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
    _mmap, _munmap = _libc.mmap, _libc.munmap
    _mmap.restype = ctypes.c_void_p
    _mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    _munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class FileView:
    """``nbytes`` of the file of ``fd`` from ``start`` on; it costs addresses, no memory. Linux.

    Attributes:
        address: of the first byte.

    Raises:
        OSError: the file system does not let its files be mapped.
    """

    __slots__ = ("_first_page", "_mapped_bytes", "address")

    def __init__(self, fd: int, start: int, nbytes: int) -> None:
        self._first_page: int | None = None
        skip = start % mmap.PAGESIZE
        self._mapped_bytes = skip + nbytes
        page = _mmap(None, skip + nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, start - skip)
        if page == _MAP_FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._first_page, self.address = page, page + skip

    def is_cached(self, at: int) -> bool:
        """Whether the page of byte ``at`` of the view is in the page cache.

        It must not be asked of what lies behind the end of the file, and the answer is worth
        something only where :func:`~paraload.sources.pages.residency_is_told`.
        """
        return is_resident((self.address + at) // mmap.PAGESIZE * mmap.PAGESIZE)

    def close(self) -> None:
        """Give the addresses back."""
        page, self._first_page = self._first_page, None
        if page is not None:
            _munmap(page, self._mapped_bytes)

    def __del__(self) -> None:
        self.close()
