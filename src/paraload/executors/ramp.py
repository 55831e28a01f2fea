"""Finds out how many readers a storage deserves while it is read. Pure: no clock, no threads.

    Sample (bytes, seconds of one reader) ---> Ramp.note ---> number of readers

    readers wait, not work ---> twice as many ---> more bytes a second?  yes: keep them, try again
                                                                         no: back, try again later

The rate of n readers is n times the bytes over seconds of one, from samples that began after there
were n. So a window of samples takes no longer than the reads of half of them. Per-read throughput
of a disk varies up to 4x, so the rate is that of all windows since there are n readers, and a small
gain is kept only if several windows show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: Twice the readers for less than this is not worth their memory.
_GROWTH: Final = 1.2
#: A gain of this much is certain; a smaller one needs this many windows.
_SURE_GROWTH: Final = 1.5
_WINDOWS: Final = 4
#: Readers that work for more than this part of their time do not wait for the storage.
_WORKING_PART: Final = 0.5
#: Windows until the next attempt after one that brought nothing; doubled after each.
_FIRST_HOLD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RampLimits:
    """From ``start`` readers to ``limit``; ``cores`` can work at once."""

    start: int
    limit: int
    cores: int

    def at_most(self, readers: int) -> RampLimits:
        """The same limits, neither above ``readers`` nor below one."""
        most = max(1, readers)
        return replace(self, start=min(self.start, most), limit=min(self.limit, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one reader got in a stretch of its time, with ``working_s`` of it on a core."""

    nbytes: int
    started_s: float
    ended_s: float
    working_s: float


class Ramp:
    """Decides how many readers there should be.

    Attributes:
        workers: that number.
    """

    def __init__(self, limits: RampLimits) -> None:
        self._limits = limits
        self._before: tuple[int, float] | None = None  # readers and rate, during an attempt
        self._hold = 0
        self._next_hold = _FIRST_HOLD
        self._change(limits.start)
        self._since_s = float("-inf")

    def note(self, sample: Sample) -> int:
        """Take ``sample`` into account; returns the number of readers that there should be."""
        if sample.started_s >= self._since_s:
            self._window.append(sample)
            if len(self._window) >= max(2, self.workers // 2):
                self._end_window()
        return self.workers

    def limit_to(self, workers: int) -> None:
        """Stay at ``workers``: the system allows no more."""
        self._limits = self._limits.at_most(workers)
        self._before = None
        self._change(workers)

    def changed(self, now_s: float) -> None:
        """There are now as many readers as there should be: samples count from here on."""
        self._since_s = now_s

    def _change(self, workers: int) -> None:
        self.workers = workers
        self._window: list[Sample] = []
        self._windows = 0
        self._nbytes = 0
        self._seconds = 0.0
        self._since_s = float("inf")

    def _end_window(self) -> None:
        seconds = sum(sample.ended_s - sample.started_s for sample in self._window)
        if seconds <= 0:
            return
        working_s = sum(sample.working_s for sample in self._window)
        self._nbytes += sum(sample.nbytes for sample in self._window)
        self._seconds += seconds
        self._windows += 1
        self._window = []
        # No more readers than cores work at once, so each can work for a part of its time only.
        readers_per_core = max(1.0, self.workers / self._limits.cores)
        self._decide(is_waiting=working_s * readers_per_core <= _WORKING_PART * seconds)

    def _decide(self, *, is_waiting: bool) -> None:
        rate = self.workers * self._nbytes / self._seconds
        if self._before is not None:
            workers, rate_before = self._before
            if rate < _GROWTH * rate_before:
                self._before = None
                self._hold, self._next_hold = self._next_hold, 2 * self._next_hold
                self._change(workers)
                return
            if rate < _SURE_GROWTH * rate_before and self._windows < _WINDOWS:
                return
            self._before = None
        if self._hold:
            self._hold -= 1
        elif is_waiting and self.workers < self._limits.limit:
            self._before = (self.workers, rate)
            self._change(min(2 * self.workers, self._limits.limit))
