"""ByteSource: where bytes come from. One storage is one file beside this one."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

__all__ = ["ByteSource"]


class ByteSource(Protocol):
    """Reads ranges of the files of a checkpoint.

    A source may be used by many threads at once, and pickles as configuration: handles are opened
    when they are first needed, in each process anew. Paths are relative to the checkpoint.

    Errors are :class:`~paraload.errors.ItemReadError` or plain ``OSError``; a read that ends early
    is an error (:class:`~paraload.errors.ShortFileError`), never fewer bytes.
    """

    def size(self, path: str) -> int:
        """Bytes of the file."""

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers``, in order, with the bytes from ``start`` on.

        Returns:
            The number of requests that it took.
        """

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A seekable stream of the whole file, for hooks; leaving the context closes it."""

    def close(self) -> None:
        """Close what is open in this process; the source can be used again."""
