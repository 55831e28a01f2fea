"""Base class of sources that change or observe the reads of another one."""

from collections.abc import Sequence
from typing import Any, ClassVar

from paraload.sources import ByteSource, FileStat, Read, ReadStats


class WrappedSource:
    """:class:`~paraload.sources.ByteSource` that passes calls on to ``inner``.

    It has the optional members of ``inner``, apart from ``read_rows``: that would bypass a subclass
    that only overrides ``read``.
    """

    passed_on: ClassVar[frozenset[str]] = frozenset(
        {
            *("describe_change", "drop_handle", "is_pinned", "is_transient", "list_files"),
            *("list_folder", "open_stream", "require_readable", "root"),
        }
    )

    def __init__(self, inner: ByteSource) -> None:
        self.inner = inner
        self.limits = inner.limits

    def __getattr__(self, name: str) -> Any:
        if name in self.passed_on:
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def stat(self, path: str) -> FileStat:
        return self.inner.stat(path)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        return self.inner.read(path, reads)

    def close(self) -> None:
        self.inner.close()
