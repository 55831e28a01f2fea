"""The tables: the fastest first, and those that could not run at the end with their error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.command import machine
from benchmarks.results import Table
from benchmarks.rivals.contestants import RAW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.rivals.contest import Result
    from benchmarks.rivals.contestants import Contestant

__all__ = ["fastest_first", "figures", "rivals_table"]

_COLUMNS = ("reader", "version", "reads", "median s", "GiB/s", "of raw", "min..max s")


def rivals_table(
    result: Result,
    contestants: Sequence[Contestant],
    failures: Mapping[str, str],
    *,
    limit: str = RAW,
) -> Table:
    """One row for each contestant, compared with the one that is the limit."""
    raw_s = result.timings[limit].median_s
    rows = []
    for contestant in fastest_first(result, contestants):
        timing = result.timings[contestant.name]
        figures = (
            f"{timing.median_s:.3f}",
            f"{result.gib_per_s(contestant.name):.2f}",
            f"{raw_s / timing.median_s:.2f}",
            timing.spread if len(timing.seconds) > 1 else "one run",
        )
        rows.append((*_identity(contestant), *figures))
    rows += [
        (*_identity(contestant), "not run", "-", "-", failures[contestant.name])
        for contestant in contestants
        if contestant.name in failures
    ]
    return Table(
        title=f"{result.title} (others kept {result.others_cores:.1f} cores busy)",
        columns=_COLUMNS,
        rows=tuple(rows),
    )


def fastest_first(result: Result, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those that were measured, by their medians."""
    measured = [contestant for contestant in contestants if contestant.name in result.timings]
    return sorted(measured, key=lambda contestant: result.timings[contestant.name].median_s)


def figures(
    results: Sequence[Result], contestants: Sequence[Contestant], failures: Mapping[str, str]
) -> dict[str, Any]:
    """All of it for JSON."""
    return {
        "machine": machine(),
        "readers": {
            c.name: {"package": c.package, "version": c.version, "reads": c.file_format}
            for c in contestants
        },
        "not run": dict(failures),
        "results": [result.to_dict() for result in results],
    }


def _identity(contestant: Contestant) -> tuple[str, str, str]:
    return contestant.name, contestant.version, contestant.file_format
