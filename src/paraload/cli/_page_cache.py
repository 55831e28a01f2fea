"""The page cache: how to drop byte ranges from it, and whether they are in it.

    1. posix_fadvise(DONTNEED), if mincore confirms it: needs no rights, touches no other file
    2. /proc/sys/vm/drop_caches: empties the cache of the whole machine
    3. posix_fadvise(DONTNEED) as a hint that mincore cannot confirm
    4. a reason why nothing can be measured cold here

mincore tells the truth only about files that this user owns or may write. It calls all others
resident, so they are not asked about.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from paraload.sources._pages import residency_is_told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ColdCache", "FileRange", "NoColdCacheError", "cold_cache", "resident_fraction"]

DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_ADVICE: Final = "posix_fadvise(DONTNEED)"
_UNSEEN: Final = "only a hint: whether the kernel takes it cannot be seen for these files"
#: A rest that does not change a time noticeably.
_TOLERANCE: Final = 0.02
#: Mapped at once to ask about.
_WINDOW_BYTES: Final = 1 << 30


class FileRange(NamedTuple):
    """Bytes ``[start, end)`` of a file."""

    path: Path
    start: int
    end: int


class NoColdCacheError(Exception):
    """Nothing empties the cache here; the text says what was tried."""


class ColdCache(NamedTuple):
    """A way to empty the cache, its name, and what a reader of the figures must know about it."""

    drop: Callable[[], None]
    method: str
    note: str


def cold_cache(ranges: Sequence[FileRange]) -> ColdCache:
    """The best way to drop ``ranges`` from the page cache, tried once.

    Raises:
        NoColdCacheError: none works.
    """
    advice = ColdCache(lambda: _advise(ranges), _ADVICE, "seen to work for these files")
    everything = ColdCache(_drop_all, str(DROP_CACHES), "for the whole machine")
    try:
        _flush(ranges)
    except OSError as error:
        raise NoColdCacheError(f"the files cannot be flushed: {error.strerror}") from error
    problems: list[str] = []
    hint: ColdCache | None = None
    for way in (advice, everything):
        try:
            way.drop()
            left = resident_fraction(ranges)
        except OSError as error:
            problems.append(f"{way.method}: {error.strerror}")
            continue
        if left is None and way is advice:
            hint = advice._replace(note=_UNSEEN)
        elif left is not None and left > _TOLERANCE:
            problems.append(f"{way.method}: {left:.0%} of the bytes stayed in the page cache")
        else:
            return way
    if hint is None:
        raise NoColdCacheError("; ".join(problems))
    return hint


def resident_fraction(ranges: Sequence[FileRange]) -> float | None:
    """The part of ``ranges`` that is in the page cache; ``None`` where that cannot be seen."""
    pages = resident = 0
    for path, start, end in ranges:
        if not residency_is_told(path):
            return None
        first = start - start % mmap.ALLOCATIONGRANULARITY
        with path.open("rb") as file:
            for at in range(first, end, _WINDOW_BYTES):
                flags = _residency(file.fileno(), at, min(end - at, _WINDOW_BYTES))
                pages += len(flags)
                resident += int(np.count_nonzero(flags))
    return resident / pages if pages else 0.0


def _residency(fd: int, start: int, nbytes: int) -> Any:
    """One byte for each page; 0 if it is not resident."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, nbytes, prot=mmap.PROT_READ, offset=start) as mapping:
        mapped = np.frombuffer(mapping, dtype=np.uint8)
        flags = np.zeros(-(-nbytes // mmap.PAGESIZE), dtype=np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(mapped.ctypes.data),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(flags.ctypes.data),
        )
        del mapped  # an mmap with exported buffers cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return flags & 1


def _flush(ranges: Sequence[FileRange]) -> None:
    # Dirty pages cannot be dropped. A read-only descriptor is enough for fsync.
    for path, _, _ in ranges:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _advise(ranges: Sequence[FileRange]) -> None:
    for path, _, _ in ranges:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drop_all() -> None:
    DROP_CACHES.write_text("1\n", encoding="ascii")
