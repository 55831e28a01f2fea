"""How many readers a storage wants, found out while it is read. Pure: no clock, no threads.

    Sample (bytes, seconds of one reader) ---> Ramp.note ---> number of readers

    readers wait, not work ---> twice as many ---> more bytes a second?  yes: keep them, try again
                                                                         no: back, try again later

The rate of n readers is n times what one of them gets, bytes over seconds, from samples that began
after there were n: so a look takes no longer than the reads of half of them. A disk gives one read
four times what it gives the next. So a number is judged by all looks since there are so many, and
one that seems to bring a little is looked at again before it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: Twice the readers for less than this is not worth their memory.
_GROWTH: Final = 1.2
#: With so much more there is no doubt; with less, this many looks have to say so.
_SURE_GROWTH: Final = 1.5
_LOOKS: Final = 4
#: Readers that work more than this part of their time do not wait for the storage.
_WORKING_PART: Final = 0.5
#: After readers that brought nothing: so many looks until the next attempt, then twice as many.
_FIRST_HOLD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RampLimits:
    """From ``start`` readers to ``limit``; ``cores`` can work at once."""

    start: int
    limit: int
    cores: int

    def at_most(self, readers: int) -> RampLimits:
        """The same with ``readers``, at least one, where it would be more."""
        most = max(1, readers)
        return replace(self, start=min(self.start, most), limit=min(self.limit, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one reader got in a stretch of its time, of which it was ``working_s`` on a core."""

    nbytes: int
    started_s: float
    ended_s: float
    working_s: float


class _Rate:
    """What one reader has got, over several looks."""

    def __init__(self) -> None:
        self.looks = 0
        self._nbytes = 0
        self._seconds = 0.0

    def add(self, nbytes: int, seconds: float) -> None:
        self.looks += 1
        self._nbytes += nbytes
        self._seconds += seconds

    @property
    def bytes_per_second(self) -> float:
        return self._nbytes / self._seconds


class Ramp:
    """Says how many readers there should be.

    Attributes:
        workers: now.
    """

    def __init__(self, limits: RampLimits) -> None:
        self.workers = limits.start
        self._limits = limits
        self._since_s = float("-inf")
        self._fewer: tuple[int, float] | None = None
        self._so_far = _Rate()
        self._hold = 0
        self._next_hold = _FIRST_HOLD
        self._begin_look()

    def note(self, sample: Sample) -> int:
        """Take ``sample`` into account.

        Returns:
            The number of readers that there should be.
        """
        if sample.started_s < self._since_s:
            return self.workers
        self._samples += 1
        self._nbytes += sample.nbytes
        self._seconds += sample.ended_s - sample.started_s
        self._working_s += sample.working_s
        if self._samples >= max(2, self.workers // 2) and self._seconds > 0:
            self._decide()
            self._begin_look()
        return self.workers

    def limit_to(self, workers: int) -> None:
        """Stay at ``workers``: the system does not allow more."""
        self._limits = self._limits.at_most(workers)
        self._fewer = None
        self._change(workers)

    def changed(self, now_s: float) -> None:
        """There are now as many readers as there should be: samples count from here on."""
        self._since_s = now_s

    def _begin_look(self) -> None:
        self._samples = 0
        self._nbytes = 0
        self._seconds = 0.0
        self._working_s = 0.0

    def _decide(self) -> None:
        self._so_far.add(self._nbytes, self._seconds)
        rate = self.workers * self._so_far.bytes_per_second
        if self._fewer is not None:
            workers, rate_of_fewer = self._fewer
            if rate < _GROWTH * rate_of_fewer:
                self._fewer = None
                self._hold, self._next_hold = self._next_hold, 2 * self._next_hold
                self._change(workers)
                return
            if rate < _SURE_GROWTH * rate_of_fewer and self._so_far.looks < _LOOKS:
                return
            self._fewer = None
        if self._hold:
            self._hold -= 1
        elif self.workers < self._limits.limit and not self._is_working():
            self._fewer = (self.workers, rate)
            self._change(min(2 * self.workers, self._limits.limit))

    def _is_working(self) -> bool:
        """Whether the cores are the limit: no more readers than cores can work at once."""
        readers_for_each_core = max(1.0, self.workers / self._limits.cores)
        return self._working_s * readers_for_each_core > _WORKING_PART * self._seconds

    def _change(self, workers: int) -> None:
        self.workers = workers
        self._so_far = _Rate()
        self._since_s = float("inf")
