"""Reads that fail for the moment, and are tried again.

A network file system answers once with EIO, ESTALE or EAGAIN where nothing is wrong with the file,
and just after a write with ENOENT. Damage is different: a short file or a wrong checksum stays as
it is, and is never tried again. Nor is a refusal (EACCES, EPERM) or an impossible path: waiting
changes neither permissions nor names.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final, TypeVar

from paraload.errors import StorageReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["again", "is_transient", "pauses", "storage_error"]

Answer = TypeVar("Answer")

_TRANSIENT: Final = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOMEM,
        errno.EMFILE,  # other readers may be about to close theirs
        errno.ENFILE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EREMOTEIO,
        errno.ENOENT,
    }
)
#: Doubled each time: three tries more take a third of a second.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: How soon a pause ends when the load has ended.
_STEP_S: Final = 0.02


def is_transient(error: BaseException) -> bool:
    """Whether the same read may go well in a moment."""
    if isinstance(error, FileNotFoundError):
        return True  # also those that carry no number
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def pauses(retries: int, is_cancelled: Callable[[], bool] | None = None) -> Iterator[int]:
    """Wait before each new try, longer each time; ends when there are no more, or when cancelled.

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


def again(read: Callable[[], Answer], retries: int) -> Answer:
    """What ``read`` returns, tried again where it fails for the moment.

    Raises:
        Exception: of the last try.
    """
    waits = pauses(retries)
    while True:
        try:
            return read()
        except OSError as error:
            if not is_transient(error) or not next(waits, 0):
                raise


_HINTS: Final = {
    errno.EMFILE: "Too many files are open: raise `ulimit -n`, or close some",
    errno.ENFILE: "Too many files are open: raise `ulimit -n`, or close some",
    errno.EACCES: "Give this user permission to read the file and to enter the folders above it",
    errno.EPERM: "Give this user permission to read the file and to enter the folders above it",
    errno.ELOOP: "A symbolic link leads back to itself; replace it by the real file",
    errno.ENAMETOOLONG: "The metadata is damaged, or this file system takes only shorter names",
    errno.ENOTDIR: "A file has taken the place of one of the folders above it",
    errno.EISDIR: "A folder has taken the place of the file",
}
_OTHER_HINT: Final = (
    "Is the storage all right (see dmesg, or its own log)? retries= sets how often to try"
)


def storage_error(error: OSError, *, start: int | None, end: int | None, tries: int) -> OSError:
    """``error`` as the user sees it, after the last try.

    ``start`` and ``end`` are ``None`` if the error concerns the whole file; code that knows the
    items fills in their ranges.
    """
    if error.errno is None:
        return error  # a typed one already
    name = errno.errorcode.get(error.errno, str(error.errno))
    times = "" if tries == 1 else f" {tries} times"
    told = StorageReadError(
        f"the file cannot be read: the system answered {name} ({error.strerror}){times}",
        start=start,
        end=end,
        hint=_HINTS.get(error.errno, _OTHER_HINT),
    )
    told.errno = error.errno
    told.__cause__ = error
    return told
