"""The page cache: how much of some files lies in it, and how to fill and to empty it for them.

A benchmark that says "warm" or "cold" asks here whether it is so: other programs on the machine
fill and empty the cache as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.checkpoints import warm
from paraload.cli.bench.page_cache import drop
from paraload.cli.bench.page_cache import resident_fraction as visible_fraction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ensure_cold", "ensure_warm", "files_below", "resident_fraction", "why_not_cold"]

#: Empties the cache of the whole machine.
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
#: What the kernel may keep or lose of a file without changing a time that is worth telling.
_TOLERANCE: Final = 0.01
#: Others may drop what was just read.
_TRIES: Final = 5


def files_below(folder: Path) -> list[Path]:
    """Every file of a checkpoint."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


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
    drop(files)
    if resident_fraction(files) > _TOLERANCE:
        DROP_CACHES.write_text("1\n", encoding="ascii")
        if (left := resident_fraction(files)) > _TOLERANCE:
            raise RuntimeError(f"{left:.0%} of {files[0].parent} stays in the page cache")


def why_not_cold(files: Sequence[Path]) -> str:
    """Why :func:`ensure_cold` fails here; "" if it does not, and the files are cold now."""
    try:
        ensure_cold(files)
    except (OSError, RuntimeError) as error:
        return f"the page cache cannot be emptied here ({error})"
    return ""


def resident_fraction(files: Iterable[Path]) -> float:
    """The part of the files' pages that is in the page cache; 1 if they have none."""
    full = [file for file in files if file.stat().st_size]
    if not full:
        return 1.0
    found = visible_fraction(full)
    if found is None:
        raise RuntimeError(f"{full[0]}: whether it is cached cannot be seen")
    return found
