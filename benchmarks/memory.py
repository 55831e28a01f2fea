"""Memory: what a load needs above its targets, each arm in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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


def measure(checkpoints: Checkpoints, _rounds: int | None) -> Section:
    """Load 1.46 GiB from 8 files in a fresh process for each arm, once: peaks hardly vary."""
    folder = checkpoints.llama(files=8)
    found = {key: _run_child(key, folder) for key in _LIMITS}
    table = Table(
        title=f"Memory above the targets: 1.46 GiB in 8 files, budget {BUDGET_BYTES // _MIB} MiB",
        columns=("arm", "peak MiB", "first load of a fresh process s"),
        rows=tuple(
            (child["arm"], f"{child['peak_bytes'] / _MIB:.1f}", f"{child['seconds']:.3f}")
            for child in found.values()
        ),
    )
    bars = tuple(
        Bar(
            name=f"memory, {found[key]['arm']}",
            value=found[key]["peak_bytes"] / _MIB,
            limit=limit,
            unit="MiB",
            at_most=True,
        )
        for key, limit in _LIMITS.items()
        if limit is not None
    )
    return Section(tables=(table,), bars=bars, figures=found)


def _run_child(arm: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory_child", arm, str(folder)]
    output = subprocess.run(
        [*command, str(BUDGET_BYTES)], check=True, capture_output=True, text=True, cwd=_REPOSITORY
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found
