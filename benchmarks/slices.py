"""Slices: a rank of eight wants its part of matrices that were saved whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks import arms
from benchmarks.cases import sliced_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Measured, Timing

__all__ = ["measure"]

_ROUNDS: Final = 5
#: How many times faster than torch's reader a slice must be.
_BARS: Final = {"rows": 20.0, "columns": 5.0}
_STOCK: Final = arms.stock()
_CONTESTANTS: Final = (_STOCK, arms.parallel("threads"))


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load one eighth of each matrix, by rows and by columns."""
    tables, bars, figures = [], list[Bar](), {}
    for dim, what in enumerate(("rows", "columns")):
        case = sliced_case(checkpoints.sliced(), dim=dim)
        measured = measure_arms(_CONTESTANTS, case, rounds=rounds or _ROUNDS)
        needed = case.payload_bytes / (1 << 20)
        rows = tuple(_rows(measured.timings, measured.readers))
        tables.append(
            Table(
                title=f"Slices: one of eight ranks, {what}, {needed:.0f} MiB needed",
                columns=("arm", "median s", "x torch", "bytes read / needed", "min..max s"),
                rows=rows,
            )
        )
        bars += _bars(what, measured)
        figures[what] = {
            name: timing.to_dict() | {"bytes read / needed": row[3]}
            for (name, timing), row in zip(measured.timings.items(), rows, strict=True)
        }
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _bars(what: str, measured: Measured) -> list[Bar]:
    stock_s, threads_s = (measured.timings[arm.name].median_s for arm in _CONTESTANTS)
    name = f"slices, {what}"
    bars = [Bar(name=name, value=stock_s / threads_s, limit=_BARS[what], unit="x torch")]
    if what == "rows":
        report = measured.readers[_CONTESTANTS[1].name].last_report
        ratio = report.bytes_read / report.bytes_needed
        bars.append(Bar(name=name, value=ratio, limit=1.02, unit="read / needed", at_most=True))
    return bars


def _rows(timings: Mapping[str, Timing], readers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{timing.median_s:.3f}",
            f"{timings[_STOCK.name].median_s / timing.median_s:.1f}",
            _read_per_needed(readers[name]),
            timing.spread,
        )
        for name, timing in timings.items()
    ]


def _read_per_needed(reader: Any) -> str:
    report = getattr(reader, "last_report", None)
    if report is None:
        return "8.00"  # torch's reader loads every matrix whole
    return f"{report.bytes_read / report.bytes_needed:.2f}"
