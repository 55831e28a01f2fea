"""Verification: how near ``paraload.verify`` comes to the raw limit, from many files and one."""

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
_FILES: Final = (8, 1)
_RAW: Final = arms.raw()
_SUMMED: Final = arms.raw_checksum()
_VERIFY: Final = "paraload.verify"


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Check 1.46 GiB, and read it without a look."""
    rows, bars, figures = [], list[Bar](), {}
    for files in _FILES:
        layout = f"{files} files" if files > 1 else "1 file"
        case = whole_case(checkpoints.llama(files=files))
        report = paraload.verify(case.folder, max_workers=arms.WORKERS)
        if not report.ok or report.bytes_checked < case.payload_bytes:
            raise RuntimeError(f"a good checkpoint was not found to be good: {report}")
        preparations = {arm.name: partial(_prepared, arm, case) for arm in (_RAW, _SUMMED)}
        preparations[_VERIFY] = partial(_verification, case.folder)
        timings = time_rounds(preparations, rounds=rounds or _ROUNDS)
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


def _prepared(arm: arms.Arm, case: Case) -> Callable[[], object]:
    return arm.prepare(case).run


def _verification(folder: Path) -> Callable[[], object]:
    return partial(paraload.verify, folder, max_workers=arms.WORKERS)
