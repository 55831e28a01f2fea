"""Where bytes come from: a storage is one class with four members.

>>> from paraload.errors import MissingFileError, ShortFileError
>>> from paraload.sources import FileStat, Read, ReadStats, SourceLimits
>>> class MemorySource:
...     limits = SourceLimits(max_gap_bytes=1 << 20, requests_in_flight=32)
...
...     def __init__(self, files):
...         self._files = files
...
...     def stat(self, path):
...         data = self._content(path)
...         return FileStat(len(data), version=hash(data))
...
...     def read(self, path, reads):
...         data = self._content(path)
...         for start, buffers in reads:
...             for buffer in buffers:
...                 end = start + len(buffer)
...                 if end > len(data):
...                     raise ShortFileError("file ends too early", path=path)
...                 buffer[:] = data[start:end]
...                 start = end
...         return ReadStats(requests=len(reads))
...
...     def close(self):
...         pass
...
...     def _content(self, path):
...         if path not in self._files:
...             raise MissingFileError("no such file", path=path)
...         return self._files[path]
>>> source = MemorySource({"a/file": b"0123456789"})
>>> source.stat("a/file").size
10
>>> first, second = bytearray(2), bytearray(3)
>>> source.read("a/file", [Read(4, [memoryview(first), memoryview(second)])])
ReadStats(requests=1, bytes_direct=0, fallback='')
>>> bytes(first), bytes(second)
(b'45', b'678')

A reader returns its source from ``_make_source``; :class:`paraload.testing.SourceContract` tests
it. What only some storages can do is an optional member, each in a Protocol of its own: loads use
those that a source has.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple, Protocol

from paraload.geometry.runs import Run


class FileStat(NamedTuple):
    """What a storage says about a file without reading it.

    Attributes:
        size: of the file, in bytes.
        version: changes whenever the content does: an ETag, or inode and time of the last write.
            It is only compared. ``None`` if the storage cannot tell.
    """

    size: int
    version: Any = None


class Read(NamedTuple):
    """One range of a file: the bytes from ``start`` on fill ``buffers`` one after the other."""

    start: int
    buffers: Sequence[memoryview]


class ReadStats(NamedTuple):
    """What a call of ``read`` took.

    Attributes:
        requests: sent to the storage.
        bytes_direct: read without the page cache.
        fallback: why a slower path than the configured one was taken; "" if it was not.
    """

    requests: int
    bytes_direct: int = 0
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How transient errors of a storage are retried. The default suits a file system.

    Attributes:
        retries: of one call, unless ``retries=`` says otherwise.
        first_pause_s: before the first retry; doubled for each next one.
        longest_pause_s: the longest pause.
        outage_s: no retry begins later than this after the storage has last answered any call of
            the load; calls that begin later fail at once. ``inf`` looks at each call alone.
    """

    retries: int = 3
    first_pause_s: float = 0.05
    longest_pause_s: float = 5.0
    outage_s: float = math.inf


#: Servers refuse requests for longer than disks do. obstore's own defaults are 10 retries with
#: pauses from 0.1 to 15 s; all of them together take at most 56 s.
SERVER_RETRIES: Final = RetryPolicy(
    retries=10, first_pause_s=0.1, longest_pause_s=15.0, outage_s=120.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLimits:
    """What suits a storage; planning derives its sizes from it.

    The defaults suit a file system, local or mounted.

    Attributes:
        max_request_bytes: of one :class:`Read`.
        max_gap_bytes: the longest gap that is read and discarded rather than skipped: about what
            the storage transfers in the time that one more request takes.
        max_buffers: of one :class:`Read` that skips gaps.
        head_bytes: read at first of a record whose header says where its data begin.
        requests_in_flight: how many concurrent requests suit the storage, if that does not depend
            on this machine; ``None`` finds out by trial, beginning with the number of cores.
        body_bytes: memory that a request in flight needs besides the buffers that it fills. There
            are no more requests at once than half of the memory budget allows.
        forward_only: files are streams that may only go forward. Each file has one reader, which
            continues where the last task ended; such a source has ``open_stream``. Loads do not
            call its ``stat``, so missing and short files are found when they are read.
        retry: how transient errors are retried.
    """

    max_request_bytes: int = 1 << 30
    max_gap_bytes: int = 32 << 10
    max_buffers: int = 1000
    head_bytes: int = 1 << 10
    requests_in_flight: int | None = None
    body_bytes: int = 0
    forward_only: bool = False
    retry: RetryPolicy = RetryPolicy()

    @property
    def efficient_bytes(self) -> int:
        """Length of a request that spends most of its time transferring rather than waiting."""
        return min(8 * self.max_gap_bytes, self.max_request_bytes)


class ByteSource(Protocol):
    """Reads ranges of the files of a checkpoint.

    Many threads may use a source at once. It pickles as configuration: handles and connections are
    opened on first use, in each process. Paths are relative to the checkpoint.

    A missing file raises :class:`~paraload.errors.MissingFileError`, a range past the end of a file
    :class:`~paraload.errors.ShortFileError`. Other errors may be of any type; paraload adds file
    and range to them.
    """

    @property
    def limits(self) -> SourceLimits:
        """What suits this storage."""

    def stat(self, path: str) -> FileStat:
        """Look at the current file.

        Raises:
            MissingFileError: it does not exist.
            FormatError: it is not a regular file.
        """

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        """Fill all buffers of ``reads``, in any order, or raise.

        Raises:
            MissingFileError: the file does not exist.
            ShortFileError: it ends before one of the ranges does.
        """

    def close(self) -> None:
        """Close what is open in this process; the source can be used again."""


class RetryableSource(Protocol):
    """Some errors may go away: ``retries=`` says how often to try again.

    A source whose client retries by itself lacks this, so that no error is retried at two levels.
    """

    def is_transient(self, error: Exception) -> bool:
        """Whether a call that raised ``error`` may soon succeed."""


class HandleSource(Protocol):
    """Files stay open, and handles may become stale."""

    def drop_handle(self, path: str) -> None:
        """Open the file anew for the next read; running reads may use the old handle."""


class ReadableSource(Protocol):
    """A cheap check finds unreadable files before the first byte is read."""

    def require_readable(self, path: str) -> None:
        """Raise the ``OSError`` of opening the file, if it cannot be opened."""


class DescribingSource(Protocol):
    """Errors explain how a version differs from another."""

    def describe_change(self, before: FileStat, after: FileStat) -> str:
        """What happened to the file, as a clause without its subject: "was written to"."""


class RowSource(Protocol):
    """Narrow rows can be read without the bytes between them."""

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        """Read ``run.count`` rows of ``run.nbytes``, if that is faster than reading through.

        The first row goes from byte ``base + run.src`` of the file to ``memory[run.dst :]``, the
        next are ``run.src_step`` and ``run.dst_step`` further. ``None`` if the rows were not read;
        the caller falls back to ``read``, which raises any error.
        """


class StreamingSource(Protocol):
    """Files can be opened as streams, from which ``slice_file`` hooks read."""

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A seekable stream of the whole file, for use in a ``with`` statement."""


class ListingSource(Protocol):
    """All files of the checkpoint can be listed: ``verify`` finds those that nothing names."""

    def list_files(self) -> Iterator[str]:
        """The paths of all files, in any order."""


class FolderSource(Protocol):
    """A single folder can be listed without everything below it."""

    def list_folder(self, folder: str) -> Iterator[str]:
        """The names in ``folder``, which is "" or ends with "/"; those of folders end with "/"."""


class PinningSource(Protocol):
    """Reads fail unless the file still has the version of the last ``stat``.

    This also holds for copies in other processes that are made after it. So files need no second
    ``stat`` after a load.
    """

    def is_pinned(self, path: str, stat: FileStat) -> bool:
        """Whether all reads of the file since ``stat`` are of that version."""


class InProcessSource(Protocol):
    """Other processes cannot read the files; ``not_in_processes`` says why, or is ""."""

    not_in_processes: str


class MountedSource(Protocol):
    """Files are in the folder ``root`` of a file system, whose type determines the readers."""

    root: str
