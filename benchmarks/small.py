"""Many small tensors: what a reader spends on each item, whatever its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 2


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 20,000 tensors of 4 KiB."""
    case = whole_case(checkpoints.small())
    stock = arms.stock(is_slow=True)
    contestants = (stock, arms.parallel("threads"), arms.parallel("processes"))
    timings = measure_arms(contestants, case, rounds=rounds or _ROUNDS).timings
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
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), figures=figures)
