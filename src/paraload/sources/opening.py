"""The one place that turns a path into a source."""

import os
from typing import Any

from paraload.sources import ByteSource
from paraload.sources.local import LocalSource
from paraload.sources.torch_streams import StreamSource


def open_source(path: Any, *, fs: Any = None, direct_io: bool = False) -> ByteSource:
    """The source of the checkpoint at ``path``; it opens files when they are first read.

    ``fs`` is torch's ``FileSystemBase``; without one, ``path`` is a folder of mounted storage.
    """
    if fs is not None:
        return StreamSource(fs, path)
    return LocalSource(os.fspath(path), direct_io=direct_io)
