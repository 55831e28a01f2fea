"""Opens regular files, however long that takes, and refuses others, which might hang.

open without waiting --> regular: done          anything else: refused
        |
      EAGAIN: a lease (NFS delegation, SMB oplock, HSM recall)
        |
        `--> O_PATH --> regular: open it again, and wait
"""

import errno
import io
import os
import stat

from paraload.errors import FormatError
from paraload.runtime.interrupts import interrupts_deferred


def open_regular(path: str) -> io.FileIO:
    """Open the regular file ``path`` for blocking reads.

    Raises:
        FormatError: not a regular file; opening a FIFO, for instance, would wait for its writer.
        OSError: it cannot be opened.
    """
    try:
        with interrupts_deferred():  # Ctrl-C would leave the bare descriptor open
            return io.FileIO(path, opener=_open_at_once)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.ENXIO}:  # a lease; a socket, or no device
            raise
    return _open_in_time(path)


def require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(
            "not a regular file",
            got=stat.filemode(status.st_mode),
            hint="Something else has taken the place of a file of the checkpoint",
        )


def _open_at_once(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        require_regular(os.fstat(fd))
        os.set_blocking(fd, True)  # some file systems honour O_NONBLOCK in reads
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_in_time(path: str) -> io.FileIO:
    """Open a file whose lease has to be broken first; Linux gives the lease holder 45 s.

    Repeated attempts without waiting may not make an archive recall the file. Signals are handled
    during the wait.
    """
    fd = -1
    try:
        with interrupts_deferred():
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # not delayed by leases
        require_regular(os.fstat(fd))
        return io.FileIO(f"/proc/self/fd/{fd}")  # the path may name another file by now
    finally:
        if fd >= 0:
            os.close(fd)
