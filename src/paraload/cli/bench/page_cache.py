"""The page cache: drop files from it, and see how much of them is in it."""

import mmap
from collections.abc import Iterable
from os import POSIX_FADV_DONTNEED, fstat, fsync, posix_fadvise
from pathlib import Path
from typing import Final

from paraload.sources.pages import FileView, residency_is_known

_METHOD: Final = "posix_fadvise(DONTNEED)"
#: So small a remainder does not change a time noticeably.
_TOLERANCE: Final = 0.02
#: Pages to look at in each file, evenly spaced: each takes a system call of 1 us.
_SAMPLES: Final = 4096


def drop(files: Iterable[Path]) -> None:
    """Drop ``files`` from the page cache, as far as the kernel follows the hint."""
    for path in files:
        with path.open("rb") as file:
            fsync(file.fileno())  # dirty pages cannot be dropped
            posix_fadvise(file.fileno(), 0, 0, POSIX_FADV_DONTNEED)


def try_drop(files: Iterable[Path]) -> tuple[bool, str]:
    """Drop ``files`` once; whether that works here, and how that is known or why not."""
    try:
        drop(files)
        left = resident_fraction(files)
    except OSError as error:
        return False, f"{_METHOD}: {error.strerror}"
    if left is None:
        return True, f"{_METHOD}, only a hint: the kernel does not say whether it drops these files"
    if left > _TOLERANCE:
        return False, f"{_METHOD}: {left:.0%} of the bytes stayed in the page cache"
    return True, f"{_METHOD}, seen to work for these files"


def resident_fraction(files: Iterable[Path]) -> float | None:
    """The fraction of ``files`` that is cached; ``None`` where the kernel does not say."""
    pages: list[bool] = []
    for path in files:
        if not residency_is_known(path):
            return None
        with path.open("rb") as file:
            if nbytes := fstat(file.fileno()).st_size:
                view = FileView(file.fileno(), 0, nbytes)
                step = max(mmap.PAGESIZE, nbytes // _SAMPLES)
                pages += [view.is_cached(at) for at in range(0, nbytes, step)]
                view.close()
    return sum(pages) / len(pages) if pages else 0.0
