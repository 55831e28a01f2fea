"""Memory: what a load needs above its targets, each arm in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.results import Bar, Section, Table

if TYPE_CHECKING:
    from benchmarks.checkpoints import Checkpoints

__all__ = ["BUDGET_BYTES", "measure"]

BUDGET_BYTES: Final = 64 << 20
_MIB: Final = 1 << 20
_REPOSITORY: Final = Path(__file__).resolve().parents[1]

#: Arm -> MiB that it may need; ``None`` is shown for comparison only.
_LIMITS: Final[dict[str, int | None]] = {
    "stock": None,
    "threads": 32,
    "sequential": 32,
    "processes": BUDGET_BYTES // _MIB + 64,
    "pool": BUDGET_BYTES // _MIB + 64,
    "literal": None,
}


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 1.46 GiB from 8 files in a fresh process for each arm."""
    folder = checkpoints.llama(files=8)
    peaks = {
        arm: max(_peak_mib(arm, folder) for _ in range(min(rounds or 1, 3))) for arm in _LIMITS
    }
    table = Table(
        title=f"Memory above the targets: 1.46 GiB in 8 files, budget {BUDGET_BYTES // _MIB} MiB",
        columns=("arm", "peak MiB"),
        rows=tuple((arm, f"{peak:.1f}") for arm, peak in peaks.items()),
    )
    bars = tuple(
        Bar(name=f"memory of {arm}", value=peaks[arm], limit=limit, unit="MiB", at_most=True)
        for arm, limit in _LIMITS.items()
        if limit is not None
    )
    return Section(tables=(table,), bars=bars, figures=peaks)


def _peak_mib(arm: str, folder: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.memory_child", arm, str(folder)]
    output = subprocess.run(
        [*command, str(BUDGET_BYTES)], check=True, capture_output=True, text=True, cwd=_REPOSITORY
    ).stdout
    peak_bytes: int = json.loads(output)["peak_bytes"]
    return peak_bytes / _MIB
