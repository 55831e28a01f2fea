"""The contestants: each makes itself ready for a case, outside of the time, and then reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint import FileSystemReader

from benchmarks.literal_design import LiteralReader
from benchmarks.raw import RawLimit
from paraload import ParallelFileSystemReader, ReadOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cases import Case

__all__ = [
    "WORKERS",
    "Arm",
    "Prepared",
    "literal",
    "parallel",
    "raw",
    "raw_checksum",
    "reading",
    "stock",
]

WORKERS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An arm that is ready to read.

    Attributes:
        run: the part that is timed.
        reader: what it reads with; ``None`` without one.
    """

    run: Callable[[], object]
    reader: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One contestant.

    Attributes:
        name: for the tables.
        prepare: everything up to ``read_data``.
        is_slow: timed once, while it is checked, since it takes so long that one run is enough.
    """

    name: str
    prepare: Callable[[Case], Prepared]
    is_slow: bool = False


def reading(name: str, make: Callable[[Path], Any], *, is_slow: bool = False) -> Arm:
    """``read_data`` of the reader that ``make`` makes for a folder."""

    def prepare(case: Case) -> Prepared:
        reader = make(case.folder)
        plan, planner = case.plan(reader)
        return Prepared(run=lambda: reader.read_data(plan, planner).wait(), reader=reader)

    return Arm(name=name, prepare=prepare, is_slow=is_slow)


def _raw(name: str, *, workers: int, checksum: bool) -> Arm:
    @cache  # its positions are found by reading everything: once for each case is enough
    def limit(case: Case) -> RawLimit:
        return RawLimit(case, workers=workers, checksum=checksum)

    return Arm(name=name, prepare=lambda case: Prepared(run=limit(case).run))


def stock(*, is_slow: bool = False) -> Arm:
    """Torch's own reader."""
    return reading("torch FileSystemReader", FileSystemReader, is_slow=is_slow)


def raw(*, workers: int | None = None) -> Arm:
    """The least that reading can cost."""
    name = "raw limit" if workers is None else f"raw preadv, {workers} threads"
    return _raw(name, workers=workers or WORKERS, checksum=False)


def raw_checksum() -> Arm:
    """And with every byte summed."""
    return _raw("raw limit + CRC-32", workers=WORKERS, checksum=True)


def parallel(executor: str, *, verify: bool = True, direct_io: bool = False, **options: Any) -> Arm:
    """The reader of paraload with that executor; ``options`` go to it."""
    name = f"paraload {executor}" + ", direct_io" * direct_io + ", verify=False" * (not verify)
    common = ReadOptions(verify=verify, direct_io=direct_io, max_workers=WORKERS)
    chosen = ReadOptions.resolve(common, {"executor": executor, **options})
    return reading(name, lambda folder: ParallelFileSystemReader(folder, options=chosen))


def literal() -> Arm:
    """A literal process pool."""
    return reading(
        "literal process pool",
        lambda folder: LiteralReader(folder, max_workers=WORKERS),
        is_slow=True,
    )
