"""What the errors of the operating system mean: which are transient, and what to do about others.

A network file system answers once with EIO, ESTALE or EAGAIN where nothing is wrong with the file,
and just after a write with ENOENT.
"""

from __future__ import annotations

import errno
from typing import Final

from paraload.errors import ItemReadError, StorageReadError

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


def is_transient_os_error(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):
        return True  # also those without errno
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def storage_error(
    error: Exception, *, start: int | None, end: int | None, tries: int, transient: bool = False
) -> Exception:
    """``error`` as the user sees it, after the last try.

    ``start`` and ``end`` are ``None`` if the error concerns the whole file; code that knows the
    items fills in their ranges. What is neither ``transient`` nor of the system stays as it is.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ItemReadError) or (number is None and not transient):
        return error
    if isinstance(error, OSError) and number is not None:
        name = errno.errorcode.get(number, str(number))
        answer = f"the system answered {name} ({error.strerror})"
    else:
        answer = f"the storage answered {type(error).__name__} ({error})"
    times = "" if tries == 1 else f" {tries} times"
    told = StorageReadError(
        f"the file cannot be read: {answer}{times}",
        start=start,
        end=end,
        hint=_HINTS.get(number or 0, _OTHER_HINT),
    )
    told.errno = number
    told.__cause__ = error
    return told
