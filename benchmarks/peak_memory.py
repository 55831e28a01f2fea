"""How much memory some work takes."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from pathlib import Path
from typing import Final, Self

import psutil

__all__ = ["PeakMemory"]

_SAMPLE_S: Final = 0.002
#: Listing children costs more than a sample.
_SAMPLES_BETWEEN_CENSUSES: Final = 10
#: How long a child with our command line may still be between ``vfork`` and ``exec``. Forked
#: children keep our command line as well, and count from then on.
_YOUNG_S: Final = 0.2


class PeakMemory:
    """Measures the peak of resident memory above the baseline while the block runs.

    It counts all resident pages of this process and the private pages of its children, so that a
    shared page counts once. The page cache that ``preadv`` copies from belongs to no process.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._has_mark = False
        self._baseline_bytes = 0
        self._highest_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """Bytes above the baseline."""
        return self._highest_bytes - self._baseline_bytes

    def __enter__(self) -> Self:
        _return_free_memory()
        self._thread.start()
        time.sleep(10 * _SAMPLE_S)  # the watcher's own memory belongs to the baseline
        self._has_mark = _reset_high_water()
        self._baseline_bytes = self._highest_bytes = self._process.memory_info().rss
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._has_mark:  # it also covers the time between two samples
            self._highest_bytes = max(self._highest_bytes, _high_water_bytes())

    def _watch(self) -> None:
        children: list[psutil.Process] = []
        first_seen_s: dict[int, float] = {}
        samples = 0
        while not self._done.wait(_SAMPLE_S):
            if samples % _SAMPLES_BETWEEN_CENSUSES == 0:
                now_s = time.monotonic()
                children = [
                    child
                    for child in self._process.children(recursive=True)
                    if not _may_be_us(
                        child, self._process, now_s - first_seen_s.setdefault(child.pid, now_s)
                    )
                ]
            samples += 1
            now_bytes = self._process.memory_info().rss + sum(map(_own_bytes, children))
            self._highest_bytes = max(self._highest_bytes, now_bytes)


def _return_free_memory() -> None:
    """Return freed memory to the system: reusing it would not show as a peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def _may_be_us(child: psutil.Process, process: psutil.Process, known_s: float) -> bool:
    """Whether ``child`` may still share all of our memory, between ``vfork`` and ``exec``."""
    try:
        return known_s < _YOUNG_S and child.cmdline() in ([], process.cmdline())
    except psutil.Error:
        return True  # it has just ended


def _own_bytes(child: psutil.Process) -> int:
    try:
        own: int = child.memory_full_info().uss
    except psutil.Error:
        return 0  # it has just ended
    return own


def _reset_high_water() -> bool:
    """Restart the kernel's high-water mark of resident memory; ``False`` where it refuses."""
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
