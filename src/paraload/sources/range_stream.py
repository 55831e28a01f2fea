"""Ranges as seekable files, for ``slice_file`` hooks and zipfile."""

import io
import os
from collections.abc import Callable
from typing import Final

from paraload.sources import ByteSource, Read

#: Callers read in small pieces; each piece must not be a request.
BUFFER_BYTES: Final = 1 << 20


class RangeFile(io.RawIOBase):
    """A file of ``size`` bytes; ``fill(start, memory)`` reads from byte ``start`` on."""

    def __init__(self, size: int, fill: Callable[[int, memoryview], object]) -> None:
        self._size = size
        self._fill = fill
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

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader's
        memory = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        if memory:
            self._fill(self._at, memory)
        self._at += len(memory)
        return len(memory)


def range_stream(source: ByteSource, path: str) -> io.BufferedReader:
    """A stream of the whole file. Reads raise the errors of ``source``."""
    most = source.limits.max_request_bytes

    def fill(start: int, memory: memoryview) -> None:
        for at in range(0, len(memory), most):
            source.read(path, [Read(start + at, [memory[at : at + most]])])

    return io.BufferedReader(RangeFile(source.stat(path).size, fill), BUFFER_BYTES)
