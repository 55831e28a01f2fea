"""A source that goes wrong when it is told to."""

from __future__ import annotations

import copy
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from paraload.sources._wrapped import WrappedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paraload.sources._base import ByteSource, Receipt

__all__ = ["FaultySource"]


class FaultySource(WrappedSource):
    """Another source with faults: the ``fail_at``-th read of a process raises, or gives damage.

    Args:
        inner: reads the bytes.
        fail_at: number of the read that goes wrong, from 1 on; 0 for none.
        times: how many reads go wrong from there on.
        error: what it raises; ``None`` damages its first buffer instead.
        cut: the damage is a last byte that never arrives, rather than a flipped bit.
        delay_s: how long each read takes longer.
    """

    def __init__(
        self,
        inner: ByteSource,
        *,
        fail_at: int = 0,
        times: int = 1,
        error: Exception | None = None,
        cut: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        self.times = times
        self.error = error
        self.cut = cut
        self.delay_s = delay_s
        self._numbers = count(1)  # its next() is one step, whatever threads there are

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(
            FaultySource,
            fail_at=self.fail_at,
            times=self.times,
            error=self.error,
            cut=self.cut,
            delay_s=self.delay_s,
        )
        return again, (self.inner,)

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> Receipt:
        """Read, unless it is this one's turn to fail."""
        time.sleep(self.delay_s)
        if not self._is_turn():
            return self.inner.read_into(path, start, buffers)
        if self.error is not None:
            raise copy.copy(self.error)
        at = -1 if self.cut else 0
        before = buffers[0][at]
        receipt = self.inner.read_into(path, start, buffers)
        buffers[0][at] = before if self.cut else buffers[0][at] ^ 1
        return receipt

    def _is_turn(self) -> bool:
        number = next(self._numbers)
        return self.fail_at > 0 and 0 <= number - self.fail_at < self.times
