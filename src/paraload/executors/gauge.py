"""Samples what each reading thread gets from a source, for ``ramp``.

    thread --> GaugedSource.read --> source
                    |
                    +-- every 5 ms or more: Sample(bytes, from, to, time on a core) --> note

A sample covers everything between the ends of two reads: reading, checking, decoding, and waiting
for a task, except the first. So what more readers bring is measured as the load feels it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from paraload.executors.ramp import Sample
from paraload.geometry.runs import Run
from paraload.sources import ByteSource, Read, ReadStats
from paraload.sources.wrapping import WrappedSource

#: Shorter samples would cost more than they are worth: from the page cache this is a dozen reads.
_MIN_SAMPLE_S: Final = 0.005


class _OpenSample(threading.local):
    """The sample of a thread that has not ended."""

    def __init__(self) -> None:
        self.begin(time.monotonic(), time.thread_time())

    def begin(self, started_s: float, worked_s: float) -> None:
        self.nbytes = 0
        self.started_s = started_s
        self.worked_s = worked_s  # of the thread, until the sample began


class GaugedSource(WrappedSource):
    """:class:`~paraload.sources.ByteSource` that hands samples of ``inner`` to ``note``.

    Reads of its streams are not seen: code that makes them calls :meth:`count`.
    """

    def __init__(self, inner: ByteSource, note: Callable[[Sample], object]) -> None:
        super().__init__(inner)
        if hasattr(inner, "read_rows"):
            self.read_rows = self._read_rows
        self._note = note
        self._open = _OpenSample()

    def require_begun(self) -> None:
        """Begin the first sample of this thread, unless it has begun."""
        _ = self._open.started_s  # which makes it in a new thread

    def begin(self) -> None:
        """Begin a new sample of this thread, and drop the one that has not ended."""
        self._open.begin(time.monotonic(), time.thread_time())

    def count(self, nbytes: int) -> None:
        sample = self._open
        sample.nbytes += nbytes
        now_s = time.monotonic()
        if now_s - sample.started_s < _MIN_SAMPLE_S:
            return
        worked_s = time.thread_time()
        self._note(
            Sample(
                nbytes=sample.nbytes,
                started_s=sample.started_s,
                ended_s=now_s,
                working_s=worked_s - sample.worked_s,
            )
        )
        sample.begin(now_s, worked_s)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        stats = self.inner.read(path, reads)
        self.count(sum([len(buffer) for read in reads for buffer in read.buffers]))
        return stats

    def _read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        stats: ReadStats | None = self.inner.read_rows(path, base, run, memory)  # type: ignore[attr-defined]
        if stats is not None:
            self.count(run.total_bytes)
        return stats
