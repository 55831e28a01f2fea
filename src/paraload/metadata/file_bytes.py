"""The bytes of a metadata file, read with retries and a deadline.

The storage is called on a daemon thread (``runtime.daemon_threads``); the caller's thread waits.
"""

import io
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from paraload.errors import (
    FormatError,
    MetadataError,
    MissingMetadataError,
    ShortFileError,
    StalledReadError,
)
from paraload.metadata.rank_files import may_appear, why_missing
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource, FileStat, Read, StreamingSource
from paraload.sources.opening import open_source
from paraload.sources.retrying import again

#: The most bytes of one read, as in tasks: each read restarts the deadline.
_PIECE_BYTES: Final = 32 << 20


def read_metadata_bytes(
    path: str | os.PathLike[str],
    *,
    fs: Any,
    retries: int,
    stall_timeout_s: float | None,
    seen: dict[str, FileStat] | None = None,
) -> tuple[str, bytes]:
    """The file's name, absolute on a mounted file system, and all of its bytes.

    Arguments and errors are those of :func:`~paraload.metadata.reading.read_metadata`.
    """
    whole: Any = path if fs is not None else str(Path(path).absolute())
    name = str(whole)
    try:
        with (
            closing(open_source(None if fs is not None else "/", fs=fs)) as source,
            DaemonThreads.for_looks(stall_timeout_s) as thread,
        ):
            read = partial(_read, source, whole, fs, seen, thread.goes_on)
            call = partial(thread.call, lambda: f"{name!r} was being read", read)
            data: bytes | None = again(source, call, retries)
    except FileNotFoundError:
        data = None
    except FormatError:
        raise MetadataError("is not a regular file", name) from None
    except StalledReadError:
        raise
    except (OSError, MemoryError, ShortFileError) as error:
        raise MetadataError(_unreadable(error), name) from error
    if data is None:
        raise MissingMetadataError(why_missing(name, fs), name)
    if not data:
        raise MetadataError("is empty; an incomplete checkpoint? This file is written last", name)
    return name, data


def _read(
    source: ByteSource,
    path: Any,
    fs: Any,
    seen: dict[str, FileStat] | None,
    goes_on: Callable[[], None],
) -> bytes | None:
    """The bytes of the file; ``None`` if it is missing, and retries would not help."""
    try:
        if source.limits.forward_only:
            return _read_stream(source, path, goes_on)
        stat = source.stat(path)
        if seen is not None:
            seen[path] = stat
        return _read_pieces(source, path, stat.size, goes_on)
    except FileNotFoundError:
        if may_appear(path, fs):
            raise
        return None


def _read_stream(source: ByteSource, path: Any, goes_on: Callable[[], None]) -> bytes:
    pieces: list[bytes] = []
    with cast("StreamingSource", source).open_stream(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            pieces.append(piece)
            goes_on()
    return b"".join(pieces)


def _read_pieces(source: ByteSource, path: str, size: int, goes_on: Callable[[], None]) -> bytes:
    file = io.BytesIO(bytes(size))  # memory that can be read into, and is bytes without a copy
    with file.getbuffer() as memory:
        for at in range(0, size, _PIECE_BYTES):
            source.read(path, (Read(at, (memory[at : at + _PIECE_BYTES],)),))
            goes_on()
    return file.getvalue()


def _unreadable(error: Exception) -> str:
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Give this user permission to read it and to enter the folders above it"
    return what
