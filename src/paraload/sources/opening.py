"""The one place that turns a path into a source."""

import os
import re
import sys
from typing import Any

from paraload.sources import ByteSource
from paraload.sources.fsspec_files import FsspecSource
from paraload.sources.fsspec_kinds import local_root
from paraload.sources.local import LocalSource
from paraload.sources.torch_streams import StreamSource


def open_source(path: Any, *, fs: Any = None, direct_io: bool = False) -> ByteSource:
    """The source of the checkpoint at ``path``; it opens files when they are first read.

    ``fs`` is torch's ``FileSystemBase`` or an fsspec file system; without one, ``path`` is a folder
    of mounted storage.
    """
    if fs is None:
        return LocalSource(os.fspath(path), direct_io=direct_io)
    ranged = _fsspec_of(fs)
    if ranged is None or path is None:  # without a folder, paths are names for torch's `fs`
        return StreamSource(fs, path)
    return open_fsspec(path, ranged, direct_io=direct_io)


def open_fsspec(
    url: str | os.PathLike[str], fs: Any = None, *, direct_io: bool = False, **storage_options: Any
) -> ByteSource:
    """The source of a URL, or of a path of ``fs``. Local files need no fsspec to be read."""
    root = local_root(url, fs)
    if root is not None:
        return LocalSource(root, direct_io=direct_io)
    return FsspecSource(url, fs, **storage_options)


def _fsspec_of(fs: Any) -> Any:
    """The fsspec file system that ``fs`` is, or that it reads streams from; else ``None``."""
    if "fsspec" in sys.modules and isinstance(fs, sys.modules["fsspec"].AbstractFileSystem):
        return fs
    for kind in type(fs).__mro__:
        # torch's class and its module have different names in different versions.
        if re.fullmatch(r"torch\.distributed\.checkpoint\._?fsspec_filesystem", kind.__module__):
            # A subclass that makes its own streams expects them to be read.
            steps = ("create_stream", "concat_path")
            is_stock = all(getattr(type(fs), step) is getattr(kind, step) for step in steps)
            return fs.fs if is_stock else None
    return None
