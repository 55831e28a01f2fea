"""Which errors are transient, how they are retried, and what the error after the last try says.

Other errors are final at once: waiting changes neither damaged files nor permissions nor names.
"""

import errno
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from paraload.errors import ItemReadError, StorageReadError
from paraload.sources import ByteSource, FileStat, Read, ReadStats, RetryPolicy
from paraload.sources.wrapping import WrappedSource

Answer = TypeVar("Answer")

#: How soon a pause ends after the load was cancelled.
_STEP_S: Final = 0.02

# A network file system may raise EIO, ESTALE or EAGAIN once although the file is intact, and ENOENT
# just after a write. Other readers may close enough files to end an EMFILE.
_TRANSIENT: Final = frozenset(
    {
        *("EIO", "ESTALE", "EAGAIN", "EBUSY", "ENOENT", "ENOMEM", "EMFILE", "ENFILE", "EREMOTEIO"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ENOTCONN", "EHOSTUNREACH", "ENETUNREACH"),
        "ENETDOWN",
    }
)
_TOO_MANY_FILES: Final = "Too many files are open: raise `ulimit -n`, or close some"
_PERMISSION: Final = "Give this user permission to read the file and to enter the folders above it"
_HINTS: Final = {
    "EMFILE": _TOO_MANY_FILES,
    "ENFILE": _TOO_MANY_FILES,
    "EACCES": _PERMISSION,
    "EPERM": _PERMISSION,
    "ELOOP": "A symbolic link leads back to itself; replace it by the real file",
    "ENAMETOOLONG": "The metadata is damaged, or this file system takes only shorter names",
    "ENOTDIR": "A file has taken the place of one of the folders above it",
    "EISDIR": "A folder has taken the place of the file",
}
_OTHER_HINT: Final = (
    "Is the storage all right (see dmesg, or its own log)? retries= sets how often to try"
)
_SERVER_HINT: Final = "Is the server all right? retries= sets how often to try"


def is_transient_os_error(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):
        return True  # also those without errno
    return isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _TRANSIENT


def is_transient(source: ByteSource, error: BaseException) -> bool:
    """Whether ``source`` calls the error transient; without ``is_transient`` none is."""
    ask = getattr(source, "is_transient", None)
    return ask is not None and ask(error)


def pauses(
    retries: int | None,
    is_cancelled: Callable[[], bool] | None = None,
    *,
    policy: RetryPolicy,
    until_s: float = math.inf,
) -> Iterator[int]:
    """Wait before each retry, longer each time, until there are no more or the load is cancelled.

    Half of each pause is random, so that ranks which failed together do not come back together. No
    pause ends after ``until_s``, nor ``policy.outage_s`` from now.

    Yields:
        the number of the next try, from 2 on.
    """
    pause_s = policy.first_pause_s
    until_s = min(until_s, time.monotonic() + policy.outage_s)
    for number in range(policy.retries if retries is None else retries):
        until = time.monotonic() + random.uniform(pause_s / 2, pause_s)  # noqa: S311 - no secret
        if until > until_s:
            return
        while (left_s := until - time.monotonic()) > 0:
            if is_cancelled is not None and is_cancelled():
                return
            time.sleep(min(left_s, _STEP_S))
        yield number + 2
        pause_s = min(2 * pause_s, policy.longest_pause_s)


def again(source: ByteSource, call: Callable[[], Answer], retries: int | None) -> Answer:
    """Call, and retry errors that are transient for ``source``."""
    waits = pauses(retries, policy=source.limits.retry)
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(source, error) or not next(waits, 0):
                raise


def storage_error(
    error: Exception, *, start: int | None, end: int | None, tries: int, transient: bool = False
) -> Exception:
    """The error to raise after the last try.

    System errors and ``transient`` ones become a :class:`StorageReadError`; others stay unchanged.
    ``start`` and ``end`` are ``None`` if the error concerns the whole file.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ItemReadError) or (number is None and not transient):
        return error
    if isinstance(error, OSError) and number is not None:
        name = errno.errorcode.get(number, str(number))
        answer, hint = f"the system answered {name} ({error.strerror})", _HINTS.get(name)
    else:
        answer = f"the storage answered {type(error).__name__} ({error})"
        hint = _SERVER_HINT
    what = f"the file cannot be read: {answer}{f' {tries} times' if tries > 1 else ''}"
    known = StorageReadError(what, start=start, end=end, hint=hint or _OTHER_HINT)
    known.errno = number
    known.__cause__ = error
    return known


class Retries:
    """The retries of all tasks of a load in one process. Many threads use it at once.

    A thousand requests must not wait one after the other for a server that is gone. So a file that
    could not be read is not retried by other tasks. While nothing is answered, nothing is retried
    after the first call has given up; and ``outage_s`` after the first error, calls fail at once.
    The load has failed by then, so this only shortens the way to its error.

    Args:
        policy: of the storage; see there for ``outage_s``.
        retries: of each call; ``None`` for those of ``policy``.
        stall_timeout_s: of the load. Retries end after half of it, so that its error says what
            the storage answered, not that it stalled.
    """

    def __init__(
        self, policy: RetryPolicy, retries: int | None = None, stall_timeout_s: float | None = None
    ) -> None:
        self.policy = policy
        self.retries = policy.retries if retries is None else retries
        self._outage_s = policy.outage_s
        if policy.outage_s < math.inf and stall_timeout_s is not None:
            self._outage_s = min(policy.outage_s, stall_timeout_s / 2)
        self._given_up: set[str] = set()
        self._silent_since_s: float | None = None
        self._last: Exception | None = None  # of the call that gave up while nothing was answered

    def answered(self) -> None:
        if self._silent_since_s is not None:
            self._silent_since_s = self._last = None

    def failed(self) -> float:
        """Note the first error of a call; returns the time."""
        now_s = time.monotonic()
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        return now_s

    def gave_up(self, path: str, error: Exception, since_s: float) -> None:
        """Note the last error of a call that first failed at ``since_s``."""
        if self._outage_s == math.inf:
            return
        was_retried = path not in self._given_up
        self._given_up.add(path)
        silent_since_s = self._silent_since_s
        if was_retried and silent_since_s is not None and silent_since_s <= since_s:
            self._last = error.with_traceback(None)

    def hopeless(self) -> Exception | None:
        """The error of all further calls, if the storage is gone."""
        since_s, last = self._silent_since_s, self._last
        if since_s is None or last is None or time.monotonic() < since_s + self._outage_s:
            return None
        return last

    def pauses(self, path: str, is_cancelled: Callable[[], bool] | None) -> Iterator[int]:
        if self._last is not None or path in self._given_up:
            return iter(())
        since_s = self._silent_since_s
        until_s = math.inf if since_s is None else since_s + self._outage_s
        return iter(pauses(self.retries, is_cancelled, policy=self.policy, until_s=until_s))


class RetryingSource(WrappedSource):
    """:class:`~paraload.sources.ByteSource` that retries transient errors, for one task.

    After a call has failed, later calls are not retried: if a file cannot be read, its thousand
    small records must not wait one by one. It has no ``is_transient``, so that no error is retried
    at two levels.

    Attributes:
        retried: number of retries so far.
    """

    passed_on = WrappedSource.passed_on - {"is_transient"} | {"read_rows"}

    def __init__(
        self,
        inner: ByteSource,
        retries: int | Retries | None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(inner)
        self.retried = 0
        if not isinstance(retries, Retries):
            retries = Retries(inner.limits.retry, retries)
        self._retries = retries
        self._is_cancelled = is_cancelled
        self._has_failed = False

    def stat(self, path: str) -> FileStat:
        return self._retried(self.inner.stat, path)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        return self._retried(self.inner.read, path, reads)

    def _retried(self, call: Callable[..., Answer], path: str, *reads: Sequence[Read]) -> Answer:
        waits: Iterator[int] = iter(())
        tries, since_s = 1, 0.0
        if (gone := self._retries.hopeless()) is not None:
            raise _final(gone, *reads, tries=1, transient=True)
        while True:
            try:
                answer = call(path, *reads)
            except Exception as error:  # noqa: BLE001 - raised again after the last try
                # Held by no other variable: its traceback refers to this frame and to open files.
                transient = is_transient(self.inner, error)
                if transient and tries == 1:
                    since_s = self._retries.failed()
                    if not self._has_failed:
                        waits = self._retries.pauses(path, self._is_cancelled)
                if not transient or next(waits, None) is None:
                    self._has_failed = True
                    if transient:
                        self._retries.gave_up(path, error, since_s)
                    raise _final(error, *reads, tries=tries, transient=transient)  # noqa: B904
            else:
                self._retries.answered()
                return answer
            if (drop := getattr(self.inner, "drop_handle", None)) is not None:
                drop(path)
            self.retried += 1
            tries += 1


def _final(
    error: Exception, reads: Sequence[Read] = (), *, tries: int, transient: bool
) -> Exception:
    start = end = None
    if reads:
        start = reads[0].start
        end = reads[-1].start + sum(map(len, reads[-1].buffers))
    return storage_error(error, start=start, end=end, tries=tries, transient=transient)
