"""Compressed items: decoding is work for a processor, so that two of them should share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 5
_STOCK: Final = arms.stock()
_THREADS: Final = arms.parallel("threads")
_CONTESTANTS: Final = (
    _STOCK,
    _THREADS,
    arms.parallel("sequential"),
    arms.parallel("processes"),
)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 256 MiB of weights that were saved with torch's ZStandard extension."""
    case = whole_case(checkpoints.compressed())
    timings = measure_arms(_CONTESTANTS, case, rounds=rounds or _ROUNDS).timings
    stock_s = timings[_STOCK.name].median_s
    mib = case.payload_bytes / (1 << 20)
    table = Table(
        title=f"Compressed items: {mib:.0f} MiB with stream.zstd, in 8 files",
        columns=("arm", "median s", "MiB/s", "x torch", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{mib / timing.median_s:.0f}",
                f"{stock_s / timing.median_s:.2f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    ratio = stock_s / timings[_THREADS.name].median_s
    bar = Bar(name="zstd items, 2 workers", value=ratio, limit=1.7, unit="x torch")
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), bars=(bar,), figures=figures)
