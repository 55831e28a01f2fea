"""Which reader suits a path or URL."""

import os

from paraload.adapters.dcp.readers import ParallelFileSystemReader, SourceReader
from paraload.errors import InvalidOptionError

Reader = ParallelFileSystemReader | SourceReader


def reader_class(path: str | os.PathLike[str]) -> type[Reader]:
    """The class of readers for the checkpoint at ``path``."""
    if "://" in os.fspath(path):
        raise InvalidOptionError(
            f"{os.fspath(path)!r} is a URL; this version reads folders of a mounted file system"
        )
    return ParallelFileSystemReader
