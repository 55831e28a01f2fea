"""Files of a local or mounted file system, read by ``preadv`` straight into the given memory."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Final, TypeVar

from paraload.errors import FormatError, MissingFileError, ShortFileError
from paraload.geometry.runs import Run
from paraload.sources import FileStat, Read, ReadStats, SourceLimits
from paraload.sources.direct_io import MIN_BYTES, DirectFile, DirectRefusedError, Scratch
from paraload.sources.pages import populate, residency_is_known
from paraload.sources.regular_files import open_regular, require_regular
from paraload.sources.retrying import is_transient_os_error
from paraload.sources.row_copy import copy_rows

Opened = TypeVar("Opened")

#: Handles kept open, so that a checkpoint of a thousand ranks does not need a thousand descriptors.
_MAX_OPEN_FILES: Final = 64
_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids


class _OpenFile:
    """One open file. It closes with its last reference, so readers need no lock."""

    fd = -1
    refusal = ""
    _file: io.FileIO | None = None
    _direct: DirectFile | None = None

    def __init__(self, path: str, *, direct_io: bool) -> None:
        self._file = open_regular(path)
        try:
            self.fd = self._file.fileno()
            self.size = os.fstat(self.fd).st_size
        except OSError:
            self.close()  # the traceback would keep it open
            raise
        if direct_io:
            try:
                self._direct = DirectFile(self.fd, self.size, residency_known=self.residency_known)
            except DirectRefusedError as error:
                self._refuse(error)

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers``, and return the number of requests.

        Raises:
            EOFError: the file ends too early.
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
        """Fill ``buffer`` by direct I/O, unless its bytes are cached or the system refuses."""
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

    @cached_property
    def residency_known(self) -> bool:
        try:
            return residency_is_known(Path(f"/proc/self/fd/{self.fd}"))
        except OSError:
            return False

    def _refuse(self, error: DirectRefusedError) -> None:
        self._direct = None  # it closes with its last reference
        self.refusal = f"no O_DIRECT here ({error})"

    def close(self) -> None:
        self.fd = -1
        direct = self._direct
        if direct is not None:
            direct.close()
        if self._file is not None:
            with suppress(OSError):  # the descriptor is free, and the bytes already read are valid
                self._file.close()

    def __del__(self) -> None:
        self.close()


class LocalSource:
    """:class:`~paraload.sources.ByteSource` below the folder ``root``.

    Args:
        root: the folder.
        direct_io: bypass the page cache for uncached ranges.
    """

    limits = SourceLimits()
    is_transient = staticmethod(is_transient_os_error)

    def __init__(self, root: str | os.PathLike[str], *, direct_io: bool = False) -> None:
        self.root = os.fspath(root)
        self._direct_io = direct_io
        self._scratch = Scratch()
        self._handles: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., LocalSource], tuple[str]]:
        return partial(LocalSource, direct_io=self._direct_io), (self.root,)

    def stat(self, path: str) -> FileStat:
        try:
            status = Path(self.root, path).stat()
        except FileNotFoundError as error:
            raise self._missing(path) from error
        require_regular(status)
        # Without ctime, which a new link or owner changes.
        return FileStat(status.st_size, (status.st_dev, status.st_ino, status.st_mtime_ns))

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

    def require_readable(self, path: str) -> None:
        # Not part of stat(), which also runs after the load: by then a file may be unreadable.
        # access() costs a microsecond, open() maybe a round trip. access() can be wrong (access
        # control lists, capabilities), so a refusal counts only if opening fails too.
        name = os.path.join(self.root, path)
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
            size = os.fstat(handle.fd).st_size
            raise ShortFileError.past_end(path, start, end, size) from None

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> ReadStats | None:
        """Copy the rows out of the page cache, if they are there."""
        handle = self._handle(path)
        if base + run.src + (run.count - 1) * run.src_step + run.nbytes > handle.size:
            return None
        known = handle.residency_known
        calls = copy_rows(handle.fd, base, run, memory, residency_known=known)
        return ReadStats(calls) if calls else None

    def open_stream(self, path: str) -> io.BufferedReader:
        return io.BufferedReader(self._open(path, open_regular))

    def drop_handle(self, path: str) -> None:
        with self._lock:
            self._handles.pop(path, None)

    def close(self) -> None:
        """Close all files; a read that is still running may raise an error."""
        with self._lock:
            for handle in self._handles.values():
                handle.close()
            self._handles.clear()

    def _handle(self, path: str) -> _OpenFile:
        handle = self._handles.get(path)
        if handle is not None:
            return handle
        # Not under the lock: opening may take long if the storage hangs.
        opened = self._open(path, partial(_OpenFile, direct_io=self._direct_io))
        with self._lock:
            while len(self._handles) >= _MAX_OPEN_FILES:
                self._handles.pop(next(iter(self._handles)))
            return self._handles.setdefault(path, opened)

    def _open(self, path: str, open_file: Callable[[str], Opened]) -> Opened:
        name = os.path.join(self.root, path)
        try:
            try:
                return open_file(name)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    raise
                with self._lock:
                    self._handles.clear()  # running reads keep theirs open
                return open_file(name)
        except FileNotFoundError as error:
            raise self._missing(path) from error

    def _missing(self, path: str) -> MissingFileError:
        hint = f"Is the checkpoint in {self.root!r} complete?"
        return MissingFileError("file is missing", path=path, hint=hint)


def _rest(buffers: Sequence[memoryview], skip: int) -> list[memoryview]:
    rest: list[memoryview] = []
    for buffer in buffers:
        if skip < len(buffer):
            rest.append(buffer[skip:])
        skip = max(0, skip - len(buffer))
    return rest
