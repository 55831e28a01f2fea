"""Cold reads: the files are not in the page cache, so the disk decides.

A disk that is somebody's server may still have them in its own memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.page_cache import ensure_cold, files_below
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import check_arms, time_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["measure"]

#: The disk is noisy.
_ROUNDS: Final = 9
_STOCK: Final = arms.stock()
_CHOSEN: Final = arms.parallel("threads", max_workers=None)
_RAW: Final = tuple(arms.raw(workers=workers) for workers in (1, 2, 4, 8, 16))
_ARMS: Final = (_STOCK, _CHOSEN, *_RAW)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.46 GiB whole from a disk."""
    case = whole_case(checkpoints.llama(files=8))
    check_arms(_ARMS, case)
    try:
        ensure_cold(files_below(case.folder))
    except (OSError, RuntimeError) as error:
        title = f"Cold reads: not measured, the page cache cannot be emptied here ({error})"
        return Section(tables=(Table(title=title, columns=("",), rows=()),))
    timings = time_rounds({arm.name: _cold(arm, case) for arm in _ARMS}, rounds=rounds or _ROUNDS)
    bar = Bar(
        name="paraload threads, cold",
        value=timings[_STOCK.name].median_s / timings[_CHOSEN.name].median_s,
        limit=1.2,
        unit="x torch",
    )
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(_table(timings, case.payload_bytes),), bars=(bar,), figures=figures)


def _cold(arm: arms.Arm, case: Case) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        run = arm.prepare(case).run
        ensure_cold(files_below(case.folder))
        return run

    return prepare


def _table(timings: Mapping[str, Timing], payload_bytes: int) -> Table:
    gib = payload_bytes / (1 << 30)
    stock_s = timings[_STOCK.name].median_s
    return Table(
        title=f"Cold reads: {gib:.2f} GiB in 8 files, none of it in the page cache",
        columns=("arm", "median s", "GiB/s", "x torch", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{gib / timing.median_s:.2f}",
                f"{stock_s / timing.median_s:.2f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
