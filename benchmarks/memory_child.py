"""One load in a fresh process that watches its own memory, and that of its workers.

    python -m benchmarks.memory_child ARM FOLDER BUDGET_BYTES

The baseline is taken when torch and paraload are imported, the targets faulted in and the plan is
made.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.peak_memory import PeakMemory


def _arm(name: str, budget_bytes: int) -> arms.Arm:
    match name:
        case "stock":
            return arms.stock()
        case "literal":
            return arms.literal()
        case _:
            return arms.parallel(name, memory_budget_bytes=budget_bytes)


def main(name: str, folder: str, budget_bytes: str) -> None:
    """Load once, print peak and time as JSON."""
    arm = _arm(name, int(budget_bytes))
    prepared = arm.prepare(whole_case(Path(folder)))
    with PeakMemory() as memory:
        started = time.perf_counter()
        prepared.run()
        seconds = time.perf_counter() - started
    print(json.dumps({"arm": arm.name, "peak_bytes": memory.peak_bytes, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
