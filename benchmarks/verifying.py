"""Verification: how near ``paraload.verify`` comes to the raw limit, and what a tensor costs it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import paraload
from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import time_rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 7
_SMALL_ROUNDS: Final = 3
_FILES: Final = (8, 1)
_RAW: Final = arms.raw()
_SUMMED: Final = arms.raw_checksum()
_VERIFY: Final = "paraload.verify"
_THREADS: Final = arms.parallel("threads")


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Check 1.46 GiB, and read it without checks; and 50,000 tensors of 4 KiB."""
    big, small = _big(checkpoints, rounds or _ROUNDS), _small(checkpoints, rounds or _SMALL_ROUNDS)
    return Section(
        tables=big.tables + small.tables,
        bars=big.bars,
        figures={**big.figures, **small.figures},
    )


def _big(checkpoints: Checkpoints, rounds: int) -> Section:
    rows, bars, figures = [], list[Bar](), {}
    for files in _FILES:
        layout = f"{files} files" if files > 1 else "1 file"
        case = whole_case(checkpoints.llama(files=files))
        _require_good(case)
        preparations = {arm.name: partial(_prepared, arm, case) for arm in (_RAW, _SUMMED)}
        preparations[_VERIFY] = partial(_verification, case.folder)
        timings = time_rounds(preparations, rounds=rounds)
        raw_s = timings[_RAW.name].median_s
        gib = case.payload_bytes / (1 << 30)
        rows += [
            (
                layout,
                name,
                f"{timing.median_s:.3f}",
                f"{gib / timing.median_s:.2f}",
                f"{raw_s / timing.median_s:.2f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ]
        value = raw_s / timings[_VERIFY].median_s
        bars.append(Bar(name=f"verify, {layout}", value=value, limit=0.6, unit="of raw"))
        figures[layout] = {name: timing.to_dict() for name, timing in timings.items()}
    table = Table(
        title=f"Verification: {gib:.2f} GiB, page cache warm, every byte checked",
        columns=("files", "arm", "median s", "GiB/s", "of raw", "min..max s"),
        rows=tuple(rows),
    )
    return Section(tables=(table,), bars=tuple(bars), figures=figures)


def _small(checkpoints: Checkpoints, rounds: int) -> Section:
    case = whole_case(checkpoints.small())
    _require_good(case)
    preparations = {
        _VERIFY: partial(_verification, case.folder),
        f"{_THREADS.name}, read_data": partial(_prepared, _THREADS, case),
    }
    timings = time_rounds(preparations, rounds=rounds)
    table = Table(
        title=f"Verification: {len(case.targets):,} tensors of 4 KiB in 8 files",
        columns=("arm", "median s", "us a tensor", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s:.3f}",
                f"{timing.median_s / len(case.targets) * 1e6:.1f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    figures = {"small": {name: timing.to_dict() for name, timing in timings.items()}}
    return Section(tables=(table,), bars=(), figures=figures)


def _require_good(case: Case) -> None:
    report = paraload.verify(case.folder, max_workers=arms.WORKERS)
    if not report.ok or report.bytes_checked < case.payload_bytes:
        raise RuntimeError(f"a good checkpoint was not found to be good: {report}")


def _prepared(arm: arms.Arm, case: Case) -> Callable[[], object]:
    return arm.prepare(case).run


def _verification(folder: Path) -> Callable[[], object]:
    return partial(paraload.verify, folder, max_workers=arms.WORKERS)
