"""Files of any torch ``FileSystemBase`` but the local one, read from its ``create_stream``.

It serves readers whose ``fs`` was replaced (S3 connector, multi-storage-client, tar files). Some of
their streams only go forward, so tasks of one file run one after the other and share one stream.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final

from paraload.errors import MissingFileError, ShortFileError
from paraload.sources import FileStat, Read, ReadStats, SourceLimits
from paraload.sources.retrying import is_transient_os_error

#: Streams kept for the next task of their file; each may hold a connection.
_MAX_KEPT_STREAMS: Final = 32


class StreamSource:
    """:class:`~paraload.sources.ByteSource` over ``fs`` below ``root``.

    Without a ``root``, paths are whole.
    """

    limits = SourceLimits(forward_only=True)
    is_transient = staticmethod(is_transient_os_error)

    def __init__(self, fs: Any, root: Any) -> None:
        self._fs = fs
        self._root = root
        self._kept: dict[str, tuple[ExitStack, IO[bytes]]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[StreamSource], tuple[Any, Any]]:
        return StreamSource, (self._fs, self._root)

    def stat(self, path: str) -> FileStat:
        """Seek to the end of a stream, which raises if streams only go forward."""
        closing, stream = self._open(path)
        with closing:
            return FileStat(stream.seek(0, os.SEEK_END))

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        """Read from a new stream."""
        closing, stream = self._open(path)
        with closing:
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
        """The stream of the file, which is kept for the next task unless this one fails."""
        with self._lock:
            kept = self._kept.pop(path, None)
        closing, stream = kept or self._open(path)
        with closing:
            yield stream
            closing = closing.pop_all()
        with ExitStack() as surplus, self._lock:  # closing may take long, so not under the lock
            if path in self._kept:
                surplus.push(self._kept.pop(path)[0])
            self._kept[path] = closing, stream
            if len(self._kept) > _MAX_KEPT_STREAMS:
                surplus.push(self._kept.pop(next(iter(self._kept)))[0])

    def drop_handle(self, path: str) -> None:
        with self._lock:
            kept = self._kept.pop(path, None)
        if kept is not None:
            kept[0].close()

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        for closing, _ in kept.values():
            closing.close()

    def _open(self, path: str) -> tuple[ExitStack, IO[bytes]]:
        whole = path if self._root is None else self._fs.concat_path(self._root, path)
        closing = ExitStack()
        try:
            return closing, closing.enter_context(self._fs.create_stream(whole, "rb"))
        except FileNotFoundError as error:
            hint = f"Is the checkpoint in {str(self._root)!r} complete?"
            raise MissingFileError("file is missing", path=path, hint=hint) from error
