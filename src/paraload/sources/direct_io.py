"""O_DIRECT: bytes that are not in the page cache come from the storage without going through it.

    buffered  storage --> page cache --copy--> destination     and something else leaves the cache
    direct    storage --> scratch    --copy--> destination     and nothing does

Storage wants whole blocks, in memory that begins at one; the bytes of a tensor lie anywhere. So
they come into a scratch buffer, which is still in the processor's cache when they are copied on.
The buffer is of huge pages: what lies in one piece of memory is one request to the device, while
thousands of small pages make many short ones.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from contextlib import suppress
from typing import Final

from paraload.sources.file_view import FileView
from paraload.sources.pages import address_of

#: Less is not worth the whole blocks around it, nor the look at the page cache.
MIN_BYTES: Final = 256 << 10
#: Read at once: 2 to 16 MiB were equally fast, and each reader needs so much memory.
READ_BYTES: Final = 4 << 20
#: On x86 and most others. Where they are larger, the buffer is of small ones.
_HUGE_PAGE_BYTES: Final = 2 << 20
#: What every storage takes; most would take 512.
_BLOCK_BYTES: Final = 4096
_REFUSALS: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})
_O_DIRECT: Final = getattr(os, "O_DIRECT", 0)


class DirectRefusedError(Exception):
    """The file system has no O_DIRECT; the text says what it said."""


class Scratch(threading.local):
    """A buffer of huge pages for each thread, made when it is first wanted."""

    _memory: memoryview | None = None

    @property
    def memory(self) -> memoryview:
        """Room for a read and the blocks that it begins and ends in."""
        if self._memory is None:
            self._memory = _huge_pages(READ_BYTES + 2 * _BLOCK_BYTES)
        return self._memory


def _huge_pages(nbytes: int) -> memoryview:
    """Memory of this process alone that begins with as many huge pages as it fills."""
    # Shared memory, which is mmap's default, has huge pages only where an administrator says so.
    room = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = memoryview(room)
    skip = -address_of(memory) % _HUGE_PAGE_BYTES
    with suppress(OSError):  # a system without them
        room.madvise(mmap.MADV_HUGEPAGE, skip, nbytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES)
    return memory[skip : skip + nbytes]


class DirectFile:
    """The file of ``fd`` once more, opened for O_DIRECT, and a view of what is cached of it.

    Unless ``is_told`` what is cached (:func:`~paraload.sources.pages.residency_is_told`), nothing
    counts as cached.

    Raises:
        DirectRefusedError: it cannot be had.
    """

    __slots__ = ("_fd", "_size", "_view")

    def __init__(self, fd: int, size: int, *, is_told: bool) -> None:
        self._fd, self._size = -1, size
        self._view: FileView | None = None
        if not _O_DIRECT:
            raise DirectRefusedError("not on this system")
        name = f"/proc/self/fd/{fd}"  # the same file, whatever has its name by now
        try:
            self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
            if size and is_told:
                self._view = FileView(fd, 0, size)
        except OSError as error:
            self.close()
            raise DirectRefusedError(error.strerror) from error

    def is_cached(self, start: int, nbytes: int) -> bool:
        """Whether the page in the middle of the range is known to be in the page cache."""
        middle = start + nbytes // 2
        if middle >= self._size:
            return True  # reads by way of the cache tell that the file ends before
        view = self._view
        return view is not None and view.is_cached(middle)

    def read_into(self, start: int, buffer: memoryview, scratch: memoryview) -> tuple[int, int]:
        """Fill ``buffer`` from ``start`` on by way of ``scratch``.

        Returns:
            The requests that it took, and the bytes that came: fewer only where the file ends.

        Raises:
            DirectRefusedError: the file system opens files so, and reads none.
        """
        # Not by numpy, which worker processes would import for this alone.
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
            ctypes.memmove(target + done, staged + skip, wanted)  # without Python's lock
            done += wanted
        return requests, done

    def close(self) -> None:
        """Close it, and end the view; what is reading gets an error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # what was read was read
                os.close(fd)
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def __del__(self) -> None:
        self.close()
