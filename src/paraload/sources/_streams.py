"""Any torch ``FileSystemBase`` that is not the local one: whatever its ``create_stream`` gives.

The fallback for readers whose ``fs`` was replaced (S3 connector, multi-storage-client, tar files).
Each task opens a stream of its own, so nothing is shared between workers but ``fs`` itself.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

from paraload.errors import ShortFileError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

__all__ = ["StreamSource"]


class StreamSource:
    """:class:`~paraload.sources._base.ByteSource` over ``fs`` below ``root``."""

    def __init__(self, fs: Any, root: Any) -> None:
        self._fs = fs
        self._root = root

    def size(self, path: str) -> int:
        """Bytes of the file, found by going to its end."""
        with self.open_stream(path) as stream:
            return stream.seek(0, os.SEEK_END)

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` from one stream; see :class:`ByteSource`."""
        with self.open_stream(path) as stream:
            stream.seek(start)
            for buffer in buffers:
                data = stream.read(len(buffer))
                if len(data) != len(buffer):
                    end = start + sum(map(len, buffers))
                    raise ShortFileError("file ends too early", path=path, start=start, end=end)
                buffer[:] = data
        return 1

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A stream by ``fs.create_stream``."""
        stream: AbstractContextManager[IO[bytes]] = self._fs.create_stream(
            self._fs.concat_path(self._root, path), "rb"
        )
        return stream

    def close(self) -> None:
        """Nothing stays open."""
