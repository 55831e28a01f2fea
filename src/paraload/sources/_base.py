"""ByteSource: where bytes come from. One storage is one file beside this one."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from paraload._geometry import Run

__all__ = ["ByteSource", "FileIdentity", "Receipt"]


class FileIdentity(NamedTuple):
    """What a file has as long as it is the same."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """What the system says of it."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def changes_to(self, later: FileIdentity) -> str:
        """What is different ``later``; "" if the content is the same.

        The time of the last change of attributes is no matter: a new link or owner changes it.
        """
        if (self.device, self.inode) != (later.device, later.inode):
            return "is another file, put in the place of the first"
        if self.size_bytes != later.size_bytes:
            return f"had {self.size_bytes} bytes and has {later.size_bytes}"
        return "" if self.mtime_ns == later.mtime_ns else "was written to"


class Receipt(NamedTuple):
    """What a read took.

    Attributes:
        requests: to the storage.
        bytes_direct: of those that were read, those that did not go through the page cache.
        fallback: why it was read in a slower way than was asked for; "" if it was not.
    """

    requests: int
    bytes_direct: int = 0
    fallback: str = ""


class ByteSource(Protocol):
    """Reads ranges of the files of a checkpoint.

    A source may be used by many threads at once, and pickles as configuration: handles are opened
    when they are first needed, in each process anew. Paths are relative to the checkpoint.

    A source may also have a cheap ``require_readable(path)``, which raises the ``OSError`` of a
    file that cannot be opened. Then such files are reported before the first byte is read.

    Errors are :class:`~paraload.errors.ItemReadError` or plain ``OSError``; a read that ends early
    is an error (:class:`~paraload.errors.ShortFileError`), never fewer bytes.
    """

    def identify(self, path: str) -> FileIdentity | None:
        """What the file is now, without opening it; ``None`` if the storage cannot tell.

        Raises:
            MissingFileError: it is not there.
            FormatError: it is no regular file.
        """

    def size(self, path: str) -> int:
        """Bytes of the file."""

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> Receipt:
        """Fill ``buffers``, in order, with the bytes from ``start`` on."""

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> Receipt | None:
        """Read rows without what lies between them, where that is faster than reading through.

        Args:
            path: the file.
            base: what ``run.src`` counts from.
            run: the rows; ``run.dst`` counts from the beginning of ``memory``.
            memory: takes them.

        Returns:
            ``None``: it is not faster here, or did not work. The rows are to be read with
            :meth:`read_into`, and an error, if there is one, is for that to find.
        """

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A seekable stream of the whole file, for hooks; leaving the context closes it."""

    def forget(self, path: str) -> None:
        """Open the file anew when it is next read: what was opened may be stale."""

    def close(self) -> None:
        """Close what is open in this process; the source can be used again."""
