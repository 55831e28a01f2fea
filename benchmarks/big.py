"""Big tensors: how near the readers come to the raw limit, from many files and from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table, speed_table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["HEADLINE", "measure"]

_ROUNDS: Final = 7
_FILES: Final = (8, 1)

_STOCK: Final = arms.stock()
_RAW: Final = arms.raw()
_THREADS: Final = arms.parallel("threads")
#: torch and paraload, for the front page.
HEADLINE: Final = (_STOCK.name, _THREADS.name)
_UNCHECKED: Final = arms.parallel("threads", verify=False)
_PROCESSES: Final = arms.parallel("processes")
_POOL: Final = arms.parallel("pool")
_ARMS: Final = (
    _STOCK,
    _RAW,
    arms.raw_checksum(),
    _THREADS,
    _UNCHECKED,
    arms.parallel("sequential"),
    _PROCESSES,
    _POOL,
)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.46 GiB whole, with every arm."""
    tables, bars, figures = [], list[Bar](), {}
    for files in _FILES:
        layout = f"{files} files" if files > 1 else "1 file"
        case = whole_case(checkpoints.llama(files=files))
        # The literal process pool takes so long that one layout is enough.
        contestants = _ARMS if files == 1 else (*_ARMS, arms.literal())
        timings = measure_arms(contestants, case, rounds=rounds or _ROUNDS).timings
        tables.append(_table(layout, timings, case.payload_bytes))
        bars += _bars(layout, timings)
        figures[layout] = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _table(layout: str, timings: Mapping[str, Timing], payload_bytes: int) -> Table:
    title = f"Big tensors: {payload_bytes / (1 << 30):.2f} GiB in {layout}, page cache warm"
    relative_to = {"x torch": _STOCK.name, "of raw": _RAW.name}
    return speed_table(title, timings, payload_bytes, relative_to)


def _bars(layout: str, timings: Mapping[str, Timing]) -> list[Bar]:
    def bar(arm: arms.Arm, base: arms.Arm, limit: float) -> Bar:
        unit = "x torch" if base is _STOCK else "of raw"
        value = timings[base.name].median_s / timings[arm.name].median_s
        return Bar(name=f"{arm.name}, {layout}", value=value, limit=limit, unit=unit)

    return [
        bar(_THREADS, _STOCK, 4.0),
        bar(_THREADS, _RAW, 0.7),
        bar(_UNCHECKED, _RAW, 0.85),
        bar(_PROCESSES, _STOCK, 1.0),
        bar(_POOL, _STOCK, 1.0),
    ]
