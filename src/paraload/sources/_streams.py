"""Any torch ``FileSystemBase`` that is not the local one: whatever its ``create_stream`` gives.

The fallback for readers whose ``fs`` was replaced (S3 connector, multi-storage-client, tar files).
Some of their streams only go forward, so a file has one stream, which goes from task to task; the
plan sees to it that tasks of one file run one after the other.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from paraload.errors import MissingFileError, ShortFileError
from paraload.sources._base import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from paraload._geometry import Run

__all__ = ["StreamSource"]

#: Streams that wait for the next task of their file; each may hold a connection.
_MAX_KEPT_STREAMS: Final = 32


class StreamSource:
    """:class:`~paraload.sources._base.ByteSource` over ``fs`` below ``root``."""

    def __init__(self, fs: Any, root: Any) -> None:
        self._fs = fs
        self._root = root
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[StreamSource], tuple[Any, Any]]:
        return StreamSource, (self._fs, self._root)

    def identify(self, path: str) -> None:
        """A ``FileSystemBase`` cannot tell."""

    def size(self, path: str) -> int:
        """Bytes of the file, found by going to its end."""
        with self._opened(path) as stream:
            return int(stream.seek(0, os.SEEK_END))

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> Receipt:
        """Fill ``buffers`` from one stream; see :class:`ByteSource`."""
        with self._opened(path) as stream:
            stream.seek(start)
            for buffer in buffers:
                data = stream.read(len(buffer))
                if len(data) != len(buffer):
                    end = start + sum(map(len, buffers))
                    raise ShortFileError("file ends too early", path=path, start=start, end=end)
                buffer[:] = data
        return Receipt(requests=1)

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> None:
        """A stream has no way past what lies between."""

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

    def forget(self, path: str) -> None:
        """Drop the stream that was kept."""
        with self._lock:
            manager, _ = self._kept.pop(path, (None, None))
        if manager is not None:
            manager.__exit__(None, None, None)

    def close(self) -> None:
        """Close the streams that were kept."""
        with self._lock:
            kept, self._kept = self._kept, {}
        for manager, _ in kept.values():
            manager.__exit__(None, None, None)

    def _open(self, path: str) -> tuple[Any, Any]:
        manager = self._fs.create_stream(self._fs.concat_path(self._root, path), "rb")
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
