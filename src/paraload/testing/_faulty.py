"""A source that fails on demand."""

import copy
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from paraload.sources import ByteSource, Read, ReadStats
from paraload.sources.wrapping import WrappedSource


class FaultySource(WrappedSource):
    """A source whose ``fail_at``-th read in a process raises, or returns damaged bytes.

    Args:
        inner: the source that reads the bytes.
        fail_at: number of the first read that fails, from 1; 0 for none.
        times: number of consecutive reads that fail.
        error: the exception to raise; ``None`` flips a bit of the first buffer instead.
        cut: instead of flipping a bit, leave the last byte of the first buffer unread.
        delay_s: seconds that each read takes longer.
    """

    def __init__(
        self,
        inner: ByteSource,
        *,
        fail_at: int = 0,
        times: int = 1,
        error: BaseException | None = None,
        cut: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        self.times = times
        self.error = error
        self.cut = cut
        self.delay_s = delay_s
        self._numbers = count(1)  # next() is atomic, so threads need no lock

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("fail_at", "times", "error", "cut", "delay_s")
        return partial(FaultySource, **{name: getattr(self, name) for name in names}), (self.inner,)

    def _is_turn(self) -> bool:
        """Whether this read fails."""
        return 0 < self.fail_at <= next(self._numbers) < self.fail_at + self.times

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        time.sleep(self.delay_s)
        if not self._is_turn():
            return self.inner.read(path, reads)
        if self.error is not None:
            raise copy.copy(self.error)
        at = -1 if self.cut else 0
        first = reads[0].buffers[0]
        before = first[at]
        stats = self.inner.read(path, reads)
        first[at] = before if self.cut else first[at] ^ 1
        return stats
