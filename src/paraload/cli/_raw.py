"""The raw limit: bytes ``preadv``ed by threads, and nothing else.

No format, no plan, no checks: every position is known before the clock starts, and the threads take
pieces from a queue until it is empty. Nothing that reads a file into memory can be faster by much,
so this is the bar. With ``checksum`` each piece is summed too, while it is in the processor's
cache, which is what verification must cost on this machine.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from paraload._checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Piece", "RawReader", "pieces_of"]

#: Pieces of 4 to 64 MiB were equally fast; much longer ones leave one thread alone at the end.
_PIECE_BYTES: Final = 16 << 20
#: Of 64 KiB to 16 MiB the fastest: with shorter pieces the threads wait for each other at each of
#: them, longer ones have left the processor's cache when they are summed.
_CHECKSUM_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """``nbytes`` of a file from ``start`` on, and where they go; ``None`` throws them away."""

    path: str
    start: int
    nbytes: int
    memory: memoryview | None


def pieces_of(path: str, start: int, nbytes: int, memory: memoryview | None) -> Iterator[Piece]:
    """The pieces of one range."""
    for at in range(0, nbytes, _PIECE_BYTES):
        end = min(at + _PIECE_BYTES, nbytes)
        part = None if memory is None else memory[at:end]
        yield Piece(path=path, start=start + at, nbytes=end - at, memory=part)


class RawReader:
    """Reads ``pieces`` with ``workers`` threads."""

    def __init__(self, pieces: Sequence[Piece], *, workers: int, checksum: bool = False) -> None:
        self._pieces = pieces
        self._workers = workers
        self._step = _CHECKSUM_BYTES if checksum else _PIECE_BYTES
        self._checksum = checksum

    @property
    def bytes_read(self) -> int:
        """Bytes of one run."""
        return sum(piece.nbytes for piece in self._pieces)

    def run(self) -> None:
        """Read everything.

        Raises:
            OSError: a file cannot be read, or ends too early.
        """
        fds: dict[str, int] = {}
        try:
            for piece in self._pieces:
                if piece.path not in fds:
                    fds[piece.path] = os.open(piece.path, os.O_RDONLY)
            self._run_threads(fds)
        finally:
            for fd in fds.values():
                os.close(fd)

    def _run_threads(self, fds: dict[str, int]) -> None:
        queue = deque(self._pieces)
        errors: list[OSError] = []

        def work() -> None:
            scratch = memoryview(b"")
            try:
                while queue:
                    piece = queue.popleft()
                    memory = piece.memory
                    if memory is None:
                        if len(scratch) < piece.nbytes:
                            scratch = memoryview(bytearray(piece.nbytes))
                        memory = scratch[: piece.nbytes]
                    self._read(fds[piece.path], piece.start, memory)
            except IndexError:
                return  # another thread took the last piece
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _read(self, fd: int, start: int, memory: memoryview) -> None:
        crc = 0
        at = 0
        while at < len(memory):
            part = memory[at : at + self._step]
            got = os.preadv(fd, (part,), start + at)
            if not got:
                raise OSError("the file ends too early")
            if self._checksum:
                crc = crc32(part[:got], crc)
            at += got
