"""Files by workers, on storage that gives each stream a limited rate.

The storage is simulated (``rated.py``): at its rate only waiting counts, as with one stream of a
network file system, and not the speed of this machine's page cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.rated import RatedReader
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import measure_arms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["measure"]

_ROUNDS: Final = 3
_MIB_PER_SECOND: Final = 64
_LIMITS: Final = {"bytes_per_second_per_stream": float(_MIB_PER_SECOND << 20)}

#: Files, and how many times as fast as one reader 8 workers must be.
_BARS: Final = {1: 6.0, 4: 7.0, 8: 7.5, 16: 7.5}


def _arm(name: str, **options: Any) -> arms.Arm:
    return arms.reading(name, lambda folder: RatedReader(folder, limits=_LIMITS, **options))


_SEQUENTIAL: Final = _arm("sequential", executor="sequential")
_FOUR: Final = _arm("4 workers", max_workers=4)
_EIGHT: Final = _arm("8 workers", max_workers=8)
_RAMP: Final = _arm("workers chosen")
_ARMS: Final = (_SEQUENTIAL, _FOUR, _EIGHT, _RAMP)


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load the same tensors from 1, 4, 8 and 16 files."""
    rows, bars, figures = [], list[Bar](), {}
    for files, limit in _BARS.items():
        case = whole_case(checkpoints.table(files=files))
        # Torch's reader, at full speed, only says what the bytes must be.
        measured = measure_arms((arms.stock(), *_ARMS), case, rounds=rounds or _ROUNDS)
        layout = f"{files} files" if files > 1 else "1 file"
        rows.append(_row(layout, measured.timings))
        bars.append(
            Bar(
                name=f"8 workers, {layout}, simulated storage",
                value=_times_as_fast(measured.timings, _EIGHT),
                limit=limit,
                unit="x sequential",
            )
        )
        figures[layout] = {arm.name: measured.timings[arm.name].to_dict() for arm in _ARMS}
    mib = case.payload_bytes / (1 << 20)
    table = Table(
        title=f"{mib:.0f} MiB, threads, simulated storage: {_MIB_PER_SECOND} MiB/s for each stream",
        columns=("files", *(f"{arm.name} s" for arm in _ARMS), *(f"{a.name} x" for a in _ARMS[1:])),
        rows=tuple(rows),
    )
    return Section(tables=(table,), bars=tuple(bars), figures=figures)


def _row(layout: str, timings: Mapping[str, Timing]) -> tuple[str, ...]:
    return (
        layout,
        *(f"{timings[arm.name].median_s:.3f}" for arm in _ARMS),
        *(f"{_times_as_fast(timings, arm):.2f}" for arm in _ARMS[1:]),
    )


def _times_as_fast(timings: Mapping[str, Timing], arm: arms.Arm) -> float:
    return timings[_SEQUENTIAL.name].median_s / timings[arm.name].median_s
