"""Many small tensors: what a reader spends on each item, regardless of size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 3


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 50,000 tensors of 4 KiB."""
    case = whole_case(checkpoints.small())
    stock, threads = arms.stock(), arms.parallel("threads")
    contestants = (stock, threads, arms.parallel("sequential"), arms.parallel("processes"))
    timings = measure_arms(contestants, case, rounds=rounds or _ROUNDS, check_counts=True).timings
    table = Table(
        title=f"Many small tensors: {len(case.targets):,} of 4 KiB in 8 files",
        columns=("arm", "median s", "us a tensor", "x torch", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{timing.median_s / len(case.targets) * 1e6:.1f}",
                f"{timings[stock.name].median_s / timing.median_s:.1f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    ratio = timings[stock.name].median_s / timings[threads.name].median_s
    bar = Bar(name=f"{threads.name}, small tensors", value=ratio, limit=10.0, unit="x torch")
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), bars=(bar,), figures=figures)
