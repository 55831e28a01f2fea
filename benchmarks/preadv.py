"""The raw limit: threads that ``preadv`` known byte ranges, without format, plan or checks.

No reader that copies a file into memory can be much faster, so this is what others are compared
with.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Piece", "pieces_of", "read_piece", "read_raw"]

#: Pieces of 4 to 64 MiB are equally fast; much longer ones leave one thread alone at the end.
_PIECE_BYTES: Final = 16 << 20


class Piece(NamedTuple):
    """The bytes of a file that start at ``start`` and fill ``memory``."""

    path: str
    start: int
    memory: memoryview


def pieces_of(path: str, start: int, memory: memoryview) -> Iterator[Piece]:
    """The pieces of one range."""
    for at in range(0, len(memory), _PIECE_BYTES):
        yield Piece(path, start + at, memory[at : at + _PIECE_BYTES])


def read_piece(fd: int, piece: Piece) -> None:
    """Fill the memory of one piece.

    Raises:
        OSError: the file cannot be read, or ends too early.
    """
    at = 0
    while at < len(piece.memory):
        got = os.preadv(fd, (piece.memory[at:],), piece.start + at)
        if not got:
            raise OSError(f"{piece.path}: the file ends too early, at byte {piece.start + at}")
        at += got


def read_raw(
    pieces: Sequence[Piece], *, workers: int, read: Callable[[int, Piece], None] = read_piece
) -> None:
    """Read everything with ``workers`` threads.

    Raises:
        OSError: of ``read``.
    """
    queue = deque(pieces)

    def context(fds: dict[str, int]) -> None:
        while True:
            try:
                piece = queue.popleft()
            except IndexError:
                return
            read(fds[piece.path], piece)

    with ExitStack() as stack, ThreadPoolExecutor(workers) as threads:
        files = {path: stack.enter_context(open(path, "rb")) for path in {it.path for it in pieces}}
        fds = {path: file.fileno() for path, file in files.items()}
        # One call for each thread: a future for each piece would cost more than a small piece.
        list(threads.map(context, [fds] * workers))
