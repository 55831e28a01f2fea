"""The page cache: how much of some files lies in it, and how to fill and to empty it for them.

A benchmark that says "warm" or "cold" asks here whether it is so: other programs on the machine
fill and empty the cache as well.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = ["ensure_cold", "ensure_warm", "files_below", "resident_fraction", "warm"]

_READ_BYTES: Final = 16 << 20
#: What the kernel may keep or lose of a file without changing a time that is worth telling.
_TOLERANCE: Final = 0.01
#: Others may drop what was just read.
_TRIES: Final = 5
_DROP_ALL: Final = Path("/proc/sys/vm/drop_caches")


def files_below(folder: Path) -> list[Path]:
    """Every file of a checkpoint."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def warm(files: Iterable[Path]) -> None:
    """Read every byte once."""
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def ensure_warm(files: Sequence[Path]) -> None:
    """Read the files if they are not in the page cache.

    Raises:
        RuntimeError: they do not stay there, so that no warm time can be measured.
    """
    for _ in range(_TRIES):
        if (resident := resident_fraction(files)) >= 1 - _TOLERANCE:
            return
        warm(files)
    raise RuntimeError(f"only {resident:.0%} of {files[0].parent} stays in the page cache")


def ensure_cold(files: Sequence[Path]) -> None:
    """Drop the files from the page cache, and nothing else if that is enough.

    Raises:
        OSError: dropping the whole cache was needed, and is not permitted.
        RuntimeError: the files are still there.
    """
    for file in files:
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_fraction(files) > _TOLERANCE:
        os.sync()  # pages that are still to be written cannot be dropped
        _DROP_ALL.write_text("1\n", encoding="ascii")
        if (left := resident_fraction(files)) > _TOLERANCE:
            raise RuntimeError(f"{left:.0%} of {files[0].parent} stays in the page cache")


def resident_fraction(files: Iterable[Path]) -> float:
    """The part of the files' pages that is in the page cache; 1 if they have none."""
    pages = resident = 0
    for file in files:
        if file.stat().st_size:
            flags = _residency(file)
            pages += len(flags)
            resident += int(np.count_nonzero(flags))
    return resident / pages if pages else 1.0


def _residency(file: Path) -> npt.NDArray[np.uint8]:
    """A byte for each page of a file, as ``mincore`` tells it: bit 0 is set if it is resident."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapped = np.frombuffer(mapping, dtype=np.uint8)
        flags = np.zeros(-(-len(mapping) // mmap.PAGESIZE), dtype=np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(mapped.ctypes.data),
            ctypes.c_size_t(len(mapping)),
            ctypes.c_void_p(flags.ctypes.data),
        )
        del mapped  # a mapping that is looked at cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore failed for {file}")
    return flags & np.uint8(1)
