"""Reads that fail for a moment are tried again.

What is transient is for the storage to say. Damage is not: a short file or a wrong checksum stays
as it is. Nor is a refusal (EACCES, EPERM) or an impossible path: waiting changes neither
permissions nor names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

from paraload.sources import ByteSource, FileStat, Read, ReadStats
from paraload.sources.system_errors import storage_error
from paraload.sources.wrapping import WrappedSource

Answer = TypeVar("Answer")

#: Doubled each time: three retries take a third of a second.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: How soon a pause ends when the load has ended.
_STEP_S: Final = 0.02


def is_transient(source: ByteSource, error: BaseException) -> bool:
    """Whether ``source`` says so; without that capability every error is final."""
    ask = getattr(source, "is_transient", None)
    return ask is not None and ask(error)


def pauses(retries: int, is_cancelled: Callable[[], bool] | None = None) -> Iterator[int]:
    """Wait before each retry, longer each time; ends when there are no more, or when cancelled.

    Yields:
        the number of the try that comes, from 2 on.
    """
    pause_s = _FIRST_PAUSE_S
    for number in range(retries):
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            if is_cancelled is not None and is_cancelled():
                return
            time.sleep(min(left_s, _STEP_S))
        yield number + 2
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def again(source: ByteSource, call: Callable[[], Answer], retries: int) -> Answer:
    """What ``call`` returns, retried for errors that are transient for ``source``."""
    waits = pauses(retries)
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(source, error) or not next(waits, 0):
                raise


class RetryingSource(WrappedSource):
    """:class:`~paraload.sources.ByteSource` that retries transient errors, for one task.

    Once a call has used up its retries, later calls get none: where a whole file cannot be read,
    its thousand small records must not wait one by one. It has no ``is_transient``, so that nothing
    is retried twice.

    Args:
        inner: reads.
        retries: of each call.
        is_cancelled: ends the retries early.

    Attributes:
        retried: retries so far.
    """

    passed_on = WrappedSource.passed_on - {"is_transient"} | {"read_rows"}

    def __init__(
        self, inner: ByteSource, retries: int, is_cancelled: Callable[[], bool] | None = None
    ) -> None:
        super().__init__(inner)
        self.retried = 0
        self._retries = retries
        self._is_cancelled = is_cancelled

    def stat(self, path: str) -> FileStat:
        try:
            return self.inner.stat(path)
        except Exception as error:  # noqa: BLE001 - raised again after the last try
            return self._again(path, error, partial(self.inner.stat, path))

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        try:
            return self.inner.read(path, reads)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._again(path, error, partial(self.inner.read, path, reads), reads)

    def _again(
        self,
        path: str,
        error: Exception,
        call: Callable[[], Answer],
        reads: Sequence[Read] = (),
    ) -> Answer:
        tries = 1
        transient = is_transient(self.inner, error)
        for _ in pauses(self._retries if transient else 0, self._is_cancelled):
            if (drop := getattr(self.inner, "drop_handle", None)) is not None:
                drop(path)
            self.retried += 1
            tries += 1
            try:
                return call()
            except Exception as latest:  # noqa: BLE001 - raised below after the last try
                error = latest
                if not (transient := is_transient(self.inner, error)):
                    break
        self._retries = 0
        start = end = None
        if reads:
            start, (last, buffers) = reads[0].start, reads[-1]
            end = last + sum(map(len, buffers))
        raise storage_error(error, start=start, end=end, tries=tries, transient=transient)
