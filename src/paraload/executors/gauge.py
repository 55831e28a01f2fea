"""Samples of what each reading thread gets from a source, for ``_ramp``.

    thread --> GaugedSource.read --> source
                    |
                    +-- every 5 ms and more: Sample(bytes, from, to, time on a core) --> note

A sample is everything between two ends of reads: reading, checking, decoding, and waiting for a
task. What more readers bring is then measured as the load feels it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from paraload.executors.ramp import Sample
from paraload.geometry.runs import Run
from paraload.sources import ByteSource, Read, ReadStats
from paraload.sources.wrapping import WrappedSource

#: Shorter samples would cost more than they tell: from the page cache this is a dozen reads.
_MIN_SAMPLE_S: Final = 0.005


class _Stretch(threading.local):
    """Since when a thread has been reading, and what it has got."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.nbytes = 0
        self.started_s = time.monotonic()
        self._worked_s = time.thread_time()

    def end(self, now_s: float) -> Sample:
        """The sample so far; the next one begins."""
        worked_s = time.thread_time()
        sample = Sample(
            nbytes=self.nbytes,
            started_s=self.started_s,
            ended_s=now_s,
            working_s=worked_s - self._worked_s,
        )
        self.nbytes, self.started_s, self._worked_s = 0, now_s, worked_s
        return sample


class GaugedSource(WrappedSource):
    """:class:`~paraload.sources.ByteSource` that hands samples of ``inner`` to ``note``.

    Code that reads from a stream of it calls :meth:`count`.
    """

    def __init__(self, inner: ByteSource, note: Callable[[Sample], object]) -> None:
        super().__init__(inner)
        if hasattr(inner, "read_rows"):
            self.read_rows = self._read_rows
        self._note = note
        self._stretch = _Stretch()

    def begin(self) -> None:
        """Forget what this thread has read so far; its time counts from now on."""
        self._stretch.begin()

    def count(self, nbytes: int) -> None:
        stretch = self._stretch
        stretch.nbytes += nbytes
        now_s = time.monotonic()
        if now_s - stretch.started_s >= _MIN_SAMPLE_S:
            self._note(stretch.end(now_s))

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        stats = self.inner.read(path, reads)
        self.count(sum([len(buffer) for read in reads for buffer in read.buffers]))
        return stats

    def _read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        stats: ReadStats | None = self.inner.read_rows(path, base, run, memory)  # type: ignore[attr-defined]
        if stats is not None:
            self.count(run.total_bytes)
        return stats
