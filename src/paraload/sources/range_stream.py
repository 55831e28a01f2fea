"""A seekable stream over any source, for ``slice_file`` hooks."""

import io
import os
from typing import Final

from paraload.sources import ByteSource, Read

#: Hooks read records in pieces; each piece must not be a request.
_BUFFER_BYTES: Final = 1 << 20


class _RangeFile(io.RawIOBase):
    def __init__(self, source: ByteSource, path: str) -> None:
        self._source = source
        self._path = path
        self._size = source.stat(path).size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader's
        memory = memoryview(buffer).cast("B")
        memory = memory[: max(0, self._size - self._at)]
        for at in range(0, len(memory), most := self._source.limits.max_request_bytes):
            self._source.read(self._path, [Read(self._at + at, [memory[at : at + most]])])
        self._at += len(memory)
        return len(memory)


def range_stream(source: ByteSource, path: str) -> io.BufferedReader:
    """A stream of the whole file. Reads raise the errors of ``source``."""
    return io.BufferedReader(_RangeFile(source, path), _BUFFER_BYTES)
