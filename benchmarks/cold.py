"""Cold reads: the files are not in the page cache, so the disk decides.

A network disk may still have them in the memory of its server. Where the disk decides, readers
still differ in processor time.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.page_cache import ensure_cold, files_below, why_not_cold
from benchmarks.results import Bar, Section, Table, speed_table
from benchmarks.rounds import check_arms, time_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["measure"]

#: The disk is noisy.
_ROUNDS: Final = 7
_STOCK: Final = arms.stock()
_CHOSEN: Final = arms.parallel("threads", max_workers=None)
_DIRECT: Final = arms.parallel("threads", max_workers=None, direct_io=True)
_RAW: Final = tuple(arms.raw(workers=workers) for workers in (1, 2, 8))
_ARMS: Final = (_STOCK, _CHOSEN, _DIRECT, *_RAW)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.46 GiB whole from a disk."""
    case = whole_case(checkpoints.llama(files=8))
    check_arms(_ARMS, case)
    if reason := why_not_cold(files_below(case.folder)):
        title = f"Cold reads: not measured, {reason}"
        return Section(tables=(Table(title=title, columns=("",), rows=()),))
    processor_s: defaultdict[str, list[float]] = defaultdict(list)
    preparations = {arm.name: _cold(arm, case, processor_s[arm.name]) for arm in _ARMS}
    timings = time_rounds(preparations, rounds=rounds or _ROUNDS)
    bars = tuple(
        Bar(
            name=f"{arm.name}, cold",
            value=timings[_STOCK.name].median_s / timings[arm.name].median_s,
            limit=1.2,
            unit="x torch",
        )
        for arm in (_CHOSEN, _DIRECT)
    )
    busy_s = {name: statistics.median(all_s) for name, all_s in processor_s.items()}
    figures = {
        name: timing.to_dict() | {"processor_s": busy_s[name]} for name, timing in timings.items()
    }
    table = _table(timings, busy_s, case.payload_bytes)
    return Section(tables=(table,), bars=bars, figures=figures)


def _cold(
    arm: arms.Arm, case: Case, processor_s: list[float]
) -> Callable[[], Callable[[], object]]:
    """Runs of ``arm`` with nothing in the page cache; ``processor_s`` gets what each took."""

    def prepare() -> Callable[[], object]:
        run = arm.prepare(case).run
        ensure_cold(files_below(case.folder))

        def counted() -> None:
            before_s = time.process_time()
            run()
            processor_s.append(time.process_time() - before_s)

        return counted

    return prepare


def _table(timings: Mapping[str, Timing], busy_s: Mapping[str, float], payload_bytes: int) -> Table:
    gib = payload_bytes / (1 << 30)
    return speed_table(
        f"Cold reads: {gib:.2f} GiB in 8 files, none of it in the page cache",
        timings,
        payload_bytes,
        {"x torch": _STOCK.name},
        {"processor s": {name: f"{busy_s[name]:.2f}" for name in timings}},
    )
