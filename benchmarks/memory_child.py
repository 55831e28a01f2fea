"""One load in a fresh process that watches its own memory, and that of its workers.

    python -m benchmarks.memory_child ARM FOLDER BUDGET_BYTES

Counted are the resident pages of this process, where a shared page counts in full, and what each
worker has for itself alone: a page that both map is counted once. Pages of the file cache that are
copied out by ``preadv`` belong to no process. The baseline is taken when torch and paraload are
imported, the targets faulted in and the plan is made.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Final, Self

import psutil

from benchmarks import arms
from benchmarks.cases import whole_case

_SAMPLE_S: Final = 0.002
#: Looking for children costs more than a sample, and they do not come and go.
_SAMPLES_BETWEEN_CENSUSES: Final = 10


class PeakMemory:
    """The most that was resident above the baseline while the block ran."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._has_mark = False
        self._baseline_bytes = 0
        self._highest_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """Above the baseline."""
        return self._highest_bytes - self._baseline_bytes

    def __enter__(self) -> Self:
        """Take the baseline and watch from now on."""
        self._thread.start()
        time.sleep(10 * _SAMPLE_S)  # the watcher's own memory belongs to the baseline
        self._has_mark = _reset_high_water()
        self._baseline_bytes = self._highest_bytes = self._process.memory_info().rss
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()
        if self._has_mark:  # it knows what was between two samples
            self._highest_bytes = max(self._highest_bytes, _high_water_bytes())

    def _watch(self) -> None:
        children: list[psutil.Process] = []
        samples = 0
        while not self._done.wait(_SAMPLE_S):
            if samples % _SAMPLES_BETWEEN_CENSUSES == 0:
                children = self._process.children(recursive=True)
            samples += 1
            now_bytes = self._process.memory_info().rss + sum(map(_own_bytes, children))
            self._highest_bytes = max(self._highest_bytes, now_bytes)


def _own_bytes(child: psutil.Process) -> int:
    try:
        own: int = child.memory_full_info().uss
    except psutil.Error:
        return 0  # it has just ended
    return own


def _reset_high_water() -> bool:
    """Let the kernel's high-water mark of resident memory begin anew; ``False`` if it will not."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


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
