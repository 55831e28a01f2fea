"""Any torch ``FileSystemBase`` that is not the local one: whatever its ``create_stream`` gives.

The fallback for readers whose ``fs`` was replaced (S3 connector, multi-storage-client, tar files).
Some of their streams only go forward, so a file has one stream, which goes from task to task; the
plan sees to it that tasks of one file run one after the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

from paraload.errors import MissingFileError, ShortFileError
from paraload.sources import FileStat, Read, ReadStats, SourceLimits
from paraload.sources.system_errors import is_transient_os_error

#: Streams that wait for the next task of their file; each may hold a connection.
_MAX_KEPT_STREAMS: Final = 32


class StreamSource:
    """:class:`~paraload.sources.ByteSource` over ``fs`` below ``root``.

    Without a ``root``, paths are whole.
    """

    limits = SourceLimits(forward_only=True)

    def __init__(self, fs: Any, root: Any) -> None:
        self._fs = fs
        self._root = root
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[StreamSource], tuple[Any, Any]]:
        return StreamSource, (self._fs, self._root)

    def stat(self, path: str) -> FileStat:
        """Go to the end of a stream, which raises where streams only go forward."""
        with self._opened(path) as stream:
            return FileStat(stream.seek(0, os.SEEK_END))

    def is_transient(self, error: Exception) -> bool:
        return is_transient_os_error(error)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        """Read from one stream, which is this call's own."""
        with self._opened(path) as stream:
            for start, buffers in reads:
                stream.seek(start)
                for buffer in buffers:
                    data = stream.read(len(buffer))
                    if len(data) != len(buffer):
                        end = start + sum(map(len, buffers))
                        raise ShortFileError("file ends too early", path=path, start=start, end=end)
                    buffer[:] = data
        return ReadStats(requests=len(reads))

    @contextmanager
    def open_stream(self, path: str) -> Iterator[IO[bytes]]:
        """The stream of the file; it is kept for the next one who asks, unless this one fails."""
        with self._lock:
            manager, stream = self._kept.pop(path, (None, None))
        if manager is None:
            manager, stream = self._open(path)
        try:
            yield stream
        except BaseException:
            manager.__exit__(None, None, None)
            raise
        self._keep(path, manager, stream)

    def drop_handle(self, path: str) -> None:
        with self._lock:
            manager, _ = self._kept.pop(path, (None, None))
        if manager is not None:
            manager.__exit__(None, None, None)

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        for manager, _ in kept.values():
            manager.__exit__(None, None, None)

    def _open(self, path: str) -> tuple[Any, Any]:
        whole = path if self._root is None else self._fs.concat_path(self._root, path)
        manager = self._fs.create_stream(whole, "rb")
        try:
            return manager, manager.__enter__()
        except FileNotFoundError as error:
            raise MissingFileError(
                "file is missing",
                path=path,
                hint=f"Is the checkpoint in {str(self._root)!r} complete?",
            ) from error

    @contextmanager
    def _opened(self, path: str) -> Iterator[IO[bytes]]:
        """A stream of its own."""
        manager, stream = self._open(path)
        try:
            yield stream
        finally:
            manager.__exit__(None, None, None)

    def _keep(self, path: str, manager: Any, stream: Any) -> None:
        with self._lock:
            surplus = [self._kept.pop(path, None)]
            self._kept[path] = (manager, stream)
            while len(self._kept) > _MAX_KEPT_STREAMS:
                surplus.append(self._kept.pop(next(iter(self._kept))))
        for pair in surplus:
            if pair is not None:
                pair[0].__exit__(None, None, None)
