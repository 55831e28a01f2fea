"""O_DIRECT: read uncached bytes from the storage without going through the page cache.

    buffered  storage --> page cache --copy--> destination     and evicts something else
    direct    storage --> scratch    --copy--> destination     and evicts nothing

O_DIRECT needs aligned offsets, lengths and memory, but the bytes of a tensor start anywhere. So
blocks are read into a scratch buffer and copied on while they are still in the CPU's cache. The
buffer consists of huge pages: contiguous memory is one request to the device, while 4 KiB pages
split it into many short ones.
"""

import ctypes
import errno
import mmap
import os
import threading
from contextlib import suppress
from functools import cached_property
from typing import Final

from paraload.sources.pages import FileView, address_of

#: Shorter reads are not worth the partial blocks at both ends and the look at the page cache.
MIN_BYTES: Final = 256 << 10
#: Per system call. 2 to 16 MiB were equally fast, and each reader needs this much memory.
READ_BYTES: Final = 4 << 20
#: On x86 and most others. Where huge pages are larger, the buffer gets small ones.
_HUGE_PAGE_BYTES: Final = 2 << 20
#: Accepted by every storage; most would accept 512.
_BLOCK_BYTES: Final = 4096
_REFUSALS: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})
_O_DIRECT: Final = getattr(os, "O_DIRECT", 0)


class DirectRefusedError(Exception):
    """The file system does not support O_DIRECT; the text is its answer."""


class Scratch(threading.local):
    """One buffer for each thread."""

    @cached_property
    def memory(self) -> memoryview:
        """Room for one read and the partial blocks at both ends, in huge pages."""
        nbytes = READ_BYTES + 2 * _BLOCK_BYTES
        # mmap's default is shared memory, which gets huge pages only if the administrator says so.
        room = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = memoryview(room)
        skip = -address_of(memory) % _HUGE_PAGE_BYTES
        with suppress(OSError):  # a kernel without huge pages
            room.madvise(mmap.MADV_HUGEPAGE, skip, nbytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES)
        return memory[skip : skip + nbytes]


class DirectFile:
    """The file of ``fd`` opened again for O_DIRECT, with a view that shows which pages are cached.

    Unless ``residency_known`` (:func:`~paraload.sources.pages.residency_is_known`), no page counts
    as cached.

    Raises:
        DirectRefusedError: the file cannot be opened or mapped.
    """

    _fd = -1
    _view: FileView | None = None

    def __init__(self, fd: int, size: int, *, residency_known: bool) -> None:
        self._size = size
        if not _O_DIRECT:
            raise DirectRefusedError("not on this system")
        name = f"/proc/self/fd/{fd}"  # the path may name another file by now
        try:
            self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
            if size and residency_known:
                self._view = FileView(fd, 0, size)
        except OSError as error:
            self.close()
            raise DirectRefusedError(error.strerror) from error

    def is_cached(self, start: int, nbytes: int) -> bool:
        """Whether the page in the middle of the range is known to be in the page cache."""
        middle = start + nbytes // 2
        if middle >= self._size:
            return True  # the buffered read reports that the file ends before
        view = self._view
        return view is not None and view.is_cached(middle)

    def read_into(self, start: int, buffer: memoryview, scratch: memoryview) -> tuple[int, int]:
        """Fill ``buffer`` from ``start`` on; the numbers of requests and of bytes read.

        Fewer bytes than ``buffer`` has are read only if the file ends.

        Raises:
            DirectRefusedError: the file system allows opening with O_DIRECT, but not reading.
        """
        # memmove rather than numpy, which worker processes would import for this alone.
        target, staged = address_of(buffer), address_of(scratch)
        requests = done = 0
        while done < len(buffer):
            skip = (start + done) % _BLOCK_BYTES
            wanted = min(len(buffer) - done, READ_BYTES)
            blocks = -(-(skip + wanted) // _BLOCK_BYTES) * _BLOCK_BYTES
            try:
                got = os.preadv(self._fd, (scratch[:blocks],), start + done - skip)
            except OSError as error:
                if error.errno in _REFUSALS:
                    raise DirectRefusedError(error.strerror) from error
                raise
            requests += 1
            wanted = min(wanted, got - skip)
            if wanted <= 0:
                break
            ctypes.memmove(target + done, staged + skip, wanted)  # releases the GIL
            done += wanted
        return requests, done

    def close(self) -> None:
        """Close the file and unmap the view; reads that are still running raise an error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # does not affect the bytes already read
                os.close(fd)
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def __del__(self) -> None:
        self.close()
