"""The page cache: how to have byte ranges out of it, and whether they are.

    DONTNEED on the files, seen to be gone   ->  that: needs no rights, and touches nothing else
    else /proc/sys/vm/drop_caches            ->  that: empties the cache of the whole machine
    else DONTNEED, nobody can see            ->  that, and it is said that it is but a hint
    else                                     ->  a reason why nothing here can be measured cold

``mincore`` tells what is in the cache, of files that are one's own or that one may write. Of others
it says that all of it is, so that it is not asked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass, replace
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
#: What may be left without changing a time that is worth telling.
_TOLERANCE: Final = 0.02
#: Of a file that is mapped to be looked at.
_WINDOW_BYTES: Final = 1 << 30


class FileRange(NamedTuple):
    """Bytes ``[start, end)`` of a file."""

    path: Path
    start: int
    end: int


class NoColdCacheError(Exception):
    """Nothing empties the cache here; the text says what was tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdCache:
    """A way of emptying the cache.

    Attributes:
        drop: does it.
        method: its name.
        note: what a reader of the figures must know of it.
    """

    drop: Callable[[], None]
    method: str
    note: str


def cold_cache(ranges: Sequence[FileRange]) -> ColdCache:
    """The best way of having ``ranges`` out of the page cache, tried once.

    Raises:
        NoColdCacheError: there is none.
    """
    advice = ColdCache(
        drop=lambda: _advise(ranges), method=_ADVICE, note="seen to work for these files"
    )
    everything = ColdCache(drop=_drop_all, method=str(DROP_CACHES), note="for the whole machine")
    try:
        _flush(ranges)
    except OSError as error:
        raise NoColdCacheError(f"the files cannot be flushed: {_reason(error)}") from error
    problems: list[str] = []
    hint: ColdCache | None = None
    for way in (advice, everything):
        try:
            way.drop()
            left = resident_fraction(ranges)
        except OSError as error:
            problems.append(f"{way.method}: {_reason(error)}")
            continue
        if left is None and way is advice:
            hint = replace(advice, note=_UNSEEN)
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
    """A byte for each page, not 0 if it is resident."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, nbytes, prot=mmap.PROT_READ, offset=start) as mapping:
        mapped = np.frombuffer(mapping, dtype=np.uint8)
        flags = np.zeros(-(-nbytes // mmap.PAGESIZE), dtype=np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(mapped.ctypes.data),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(flags.ctypes.data),
        )
        del mapped  # a mapping that is looked at cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return flags & 1


def _flush(ranges: Sequence[FileRange]) -> None:
    # What is still to be written cannot be dropped. A descriptor for reading is enough.
    for path, _, _ in ranges:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _advise(ranges: Sequence[FileRange]) -> None:
    for path, _, _ in ranges:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drop_all() -> None:
    DROP_CACHES.write_text("1\n", encoding="ascii")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
