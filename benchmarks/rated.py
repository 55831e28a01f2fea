"""Storage with a limited rate, simulated: every read in flight is a stream of its own.

    read --> inner source (page cache) --> wait until a stream of that rate would be done

Network storage gives each stream only so much, and all of them together only so much more. No bytes
travel more slowly here; the reader is made to wait, which is the same to it and can be repeated.
Streams of hooks (``open_stream``) are not limited.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from paraload import ParallelFileSystemReader
from paraload.sources.wrapping import WrappedSource

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from paraload.sources import ByteSource, Read, ReadStats

__all__ = ["RatedReader", "RatedSource"]


class RatedSource(WrappedSource):
    """:class:`~paraload.sources.ByteSource` with the rate and latency of its arguments.

    Args:
        inner: reads the bytes.
        bytes_per_second_per_stream: of each read; reads at once do not slow each other.
        latency_s: before the first byte of each read.
        bytes_per_second: of all reads of this process together; ``None`` for no limit.
    """

    def __init__(
        self,
        inner: ByteSource,
        *,
        bytes_per_second_per_stream: float,
        latency_s: float = 0.0,
        bytes_per_second: float | None = None,
    ) -> None:
        super().__init__(inner)
        self.bytes_per_second_per_stream = bytes_per_second_per_stream
        self.latency_s = latency_s
        self.bytes_per_second = bytes_per_second
        self._wire_free_s = 0.0
        self._wire = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., RatedSource], tuple[ByteSource]]:
        again = partial(
            RatedSource,
            bytes_per_second_per_stream=self.bytes_per_second_per_stream,
            latency_s=self.latency_s,
            bytes_per_second=self.bytes_per_second,
        )
        return again, (self.inner,)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        """Read, and return no sooner than such a storage would have."""
        nbytes = sum(len(buffer) for read in reads for buffer in read.buffers)
        started_s = time.monotonic()
        due_s = started_s + self.latency_s + nbytes / self.bytes_per_second_per_stream
        if self.bytes_per_second is not None:
            due_s = max(due_s, self._over_the_wire(started_s, nbytes / self.bytes_per_second))
        stats = self.inner.read(path, reads)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return stats

    def _over_the_wire(self, now_s: float, takes_s: float) -> float:
        """When a read is through, if it queues behind all others on the one wire."""
        with self._wire:
            self._wire_free_s = max(now_s, self._wire_free_s) + takes_s
            return self._wire_free_s


class RatedReader(ParallelFileSystemReader):
    """Reads through a :class:`RatedSource` with the given limits; other keywords are options."""

    def __init__(
        self, path: str | os.PathLike[str], *, limits: dict[str, float], **keywords: Any
    ) -> None:
        super().__init__(path, **keywords)
        self._limits = limits

    def _make_source(self) -> ByteSource:
        return RatedSource(super()._make_source(), **self._limits)
