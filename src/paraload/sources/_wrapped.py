"""A source around another one, for those that change or watch its reads alone."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from paraload._geometry import Run
    from paraload.sources._base import ByteSource, FileIdentity, Receipt

__all__ = ["WrappedSource"]


class WrappedSource:
    """:class:`~paraload.sources._base.ByteSource` that does as ``inner`` does.

    Args:
        inner: does everything.
    """

    def __init__(self, inner: ByteSource) -> None:
        self.inner = inner

    def identify(self, path: str) -> FileIdentity | None:
        """As it is."""
        return self.inner.identify(path)

    def require_readable(self, path: str) -> None:
        """As it is, where ``inner`` can tell."""
        if (require := getattr(self.inner, "require_readable", None)) is not None:
            require(path)

    def size(self, path: str) -> int:
        """As it is."""
        return self.inner.size(path)

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> Receipt:
        """As it is."""
        return self.inner.read_into(path, start, buffers)

    def read_rows(self, path: str, base: int, run: Run, memory: memoryview) -> Receipt | None:
        """Not at all: it would pass by those that change or watch ``read_into`` alone."""

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """As it is."""
        return self.inner.open_stream(path)

    def forget(self, path: str) -> None:
        """As it is."""
        self.inner.forget(path)

    def close(self) -> None:
        """As it is."""
        self.inner.close()
