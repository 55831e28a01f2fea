"""Files of a local or mounted file system, by ``preadv`` straight into the given memory."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Final, NamedTuple

from paraload.errors import FormatError, MissingFileError, ShortFileError
from paraload.geometry.runs import Run
from paraload.sources import FileStat, Read, ReadStats, SourceLimits
from paraload.sources.direct_io import MIN_BYTES, DirectFile, DirectRefusedError, Scratch
from paraload.sources.pages import populate, residency_is_told
from paraload.sources.regular_files import open_regular, require_regular
from paraload.sources.row_copy import copy_rows
from paraload.sources.system_errors import is_transient_os_error

#: Handles kept open. A checkpoint of a thousand ranks must not need a thousand descriptors.
_MAX_OPEN_FILES: Final = 64
_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids


class _Version(NamedTuple):
    """Not ctime: a new link or owner changes it."""

    device: int
    inode: int
    mtime_ns: int


def stat_of(status: os.stat_result) -> FileStat:
    return FileStat(status.st_size, _Version(status.st_dev, status.st_ino, status.st_mtime_ns))


class _OpenFile:
    """One open file. It closes when the last reader lets go of it, so no reader has to lock."""

    def __init__(self, path: str, *, direct_io: bool) -> None:
        self._file: IO[bytes] | None = None
        self._direct: DirectFile | None = None
        self.refusal = ""
        self._file = open_regular(path)
        try:
            self.fd = self._file.fileno()
            self.size = os.fstat(self.fd).st_size
        except OSError:
            self.close()  # the traceback would keep it open
            raise
        if direct_io:
            try:
                self._direct = DirectFile(self.fd, self.size, is_told=self._is_told)
            except DirectRefusedError as error:
                self._refuse(error)

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` with what the system gives; the number of requests.

        Raises:
            EOFError: the file ends before them.
        """
        wanted = sum(map(len, buffers))
        requests, got = 1, os.preadv(self.fd, buffers, start)
        while got < wanted:
            requests += 1
            more = os.preadv(self.fd, _rest(buffers, got), start + got)
            if more == 0:
                raise EOFError
            got += more
        return requests

    def read_direct(self, start: int, buffer: memoryview, scratch: Scratch) -> ReadStats:
        """Fill ``buffer`` past the page cache, unless it has the bytes or there is no such way."""
        requests = got = 0
        direct = self._direct
        if direct is not None and not direct.is_cached(start, len(buffer)):
            try:
                requests, got = direct.read_into(start, buffer, scratch.memory)
            except DirectRefusedError as error:
                self._refuse(error)
        if got < len(buffer):
            requests += self.read_into(start + got, (buffer[got:],))
        return ReadStats(requests, bytes_direct=got, fallback=self.refusal)

    def read_rows(self, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        """Copy rows out of the page cache; ``None`` if they have to be read through."""
        last_byte = base + run.src + (run.count - 1) * run.src_step + run.nbytes
        if last_byte > self.size:
            return None
        calls = copy_rows(self.fd, base, run, memory, is_told=self._is_told)
        return ReadStats(calls) if calls else None

    @cached_property
    def _is_told(self) -> bool:
        """Whether the system tells what of the file is cached."""
        try:
            return residency_is_told(Path(f"/proc/self/fd/{self.fd}"))
        except OSError:
            return False

    def _refuse(self, error: DirectRefusedError) -> None:
        self._direct = None  # it closes when the last reader lets go of it
        self.refusal = f"no O_DIRECT here ({error})"

    def close(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        file, self._file = self._file, None
        if file is not None:
            self.fd = -1
            # Whatever the system says: the descriptor is free, and what was read was read.
            with suppress(OSError):
                file.close()

    def __del__(self) -> None:
        self.close()


class LocalSource:
    """:class:`~paraload.sources.ByteSource` below the folder ``root``.

    Args:
        root: the folder.
        direct_io: bypass the page cache for uncached ranges.
    """

    limits = SourceLimits()

    def __init__(self, root: str | os.PathLike[str], *, direct_io: bool = False) -> None:
        self.root = os.fspath(root)
        self._direct_io = direct_io
        self._scratch = Scratch()
        self._handles: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., LocalSource], tuple[str]]:
        return partial(LocalSource, direct_io=self._direct_io), (self.root,)

    def stat(self, path: str) -> FileStat:
        """One look at the file, by its name."""
        try:
            status = Path(self.root, path).stat()
        except FileNotFoundError as error:
            raise self._missing(path) from error
        require_regular(status)
        return stat_of(status)

    def describe_change(self, before: FileStat, after: FileStat) -> str:
        if before.version[:2] != after.version[:2]:
            return "is another file, put in the place of the first"
        if before.size != after.size:
            return f"had {before.size} bytes and has {after.size}"
        return "was written to"

    def list_files(self) -> Iterator[str]:
        for file in Path(self.root).rglob("*"):
            if not file.is_dir():
                yield file.relative_to(self.root).as_posix()

    def is_transient(self, error: Exception) -> bool:
        return is_transient_os_error(error)

    def require_readable(self, path: str) -> None:
        """Not a part of :meth:`stat`: a file may become unreadable after it has been read."""
        name = os.path.join(self.root, path)
        # access() costs a microsecond, open() may cost a round trip. access() can be wrong (access
        # lists, capabilities), so a refusal counts only if opening fails too.
        if not os.access(name, os.R_OK, effective_ids=_EFFECTIVE_IDS):
            os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        handle = self._handles.get(path) or self._handle(path)
        if len(reads) == 1:
            return self._read(handle, path, *reads[0])
        stats = [self._read(handle, path, *read) for read in reads]
        return ReadStats(
            sum(each.requests for each in stats),
            sum(each.bytes_direct for each in stats),
            handle.refusal,
        )

    def _read(
        self, handle: _OpenFile, path: str, start: int, buffers: Sequence[memoryview]
    ) -> ReadStats:
        if start < 0:
            raise FormatError("range begins before the file", path=path, start=start, end=start)
        for buffer in buffers:
            populate(buffer)
        try:
            if self._direct_io and len(buffers) == 1 and len(buffers[0]) >= MIN_BYTES:
                return handle.read_direct(start, buffers[0], self._scratch)
            return ReadStats(handle.read_into(start, buffers))
        except EOFError:
            end = start + sum(map(len, buffers))
            raise _too_short(path, start, end, handle.fd) from None

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        """Copy the rows out of the page cache, if they are there."""
        return self._handle(path).read_rows(base, run, memory)

    def open_stream(self, path: str) -> IO[bytes]:
        """A stream of its own; the caller closes it."""
        self._handle(path)  # raises the error for a missing file
        return io.BufferedReader(open_regular(os.path.join(self.root, path)))

    def drop_handle(self, path: str) -> None:
        """Let go of the file; who is reading it may go on."""
        with self._lock:
            self._handles.pop(path, None)

    def close(self) -> None:
        """Close every file that is open here. A thread that is reading gets an error, at most."""
        with self._lock:
            for handle in self._handles.values():
                handle.close()
            self._handles.clear()

    def _handle(self, path: str) -> _OpenFile:
        handle = self._handles.get(path)
        if handle is not None:
            return handle
        opened = self._open(path)  # not under the lock: it may take long, on a storage that hangs
        with self._lock:
            while len(self._handles) >= _MAX_OPEN_FILES:
                self._handles.pop(next(iter(self._handles)))
            return self._handles.setdefault(path, opened)

    def _open(self, path: str) -> _OpenFile:
        name = os.path.join(self.root, path)
        try:
            try:
                return _OpenFile(name, direct_io=self._direct_io)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    raise
                with self._lock:
                    self._handles.clear()  # do with fewer; running reads keep theirs open
                return _OpenFile(name, direct_io=self._direct_io)
        except FileNotFoundError as error:
            raise self._missing(path) from error

    def _missing(self, path: str) -> MissingFileError:
        hint = f"Is the checkpoint in {self.root!r} complete?"
        return MissingFileError("file is missing", path=path, hint=hint)


def _rest(buffers: Sequence[memoryview], skip: int) -> list[memoryview]:
    rest: list[memoryview] = []
    for buffer in buffers:
        if skip >= len(buffer):
            skip -= len(buffer)
            continue
        rest.append(buffer[skip:])
        skip = 0
    return rest


def _too_short(path: str, start: int, end: int, fd: int) -> ShortFileError:
    size = os.fstat(fd).st_size
    return ShortFileError(
        "file ends too early",
        path=path,
        start=start,
        end=end,
        expected=f"at least {end} bytes",
        got=f"{size} bytes",
        hint="The file was cut, or is still being written",
    )
