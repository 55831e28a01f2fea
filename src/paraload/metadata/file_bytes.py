"""The bytes of a metadata file, read with retries and a deadline.

Calls to the storage run on a daemon thread (``_daemons``); the caller's thread waits for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

from paraload.errors import (
    FormatError,
    MetadataError,
    MissingMetadataError,
    ShortFileError,
    StalledReadError,
)
from paraload.metadata.rank_files import GLOBAL_METADATA, is_left_out, only_ranks
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource, FileStat, Read, StreamingSource
from paraload.sources.opening import open_source
from paraload.sources.retrying import again

#: The most bytes of one read, as in tasks: each read restarts the deadline.
_PIECE_BYTES: Final = 32 << 20
_INCOMPLETE: Final = "an incomplete checkpoint? This file is written last"


class MetadataBytes(NamedTuple):
    """The content of a metadata file.

    Attributes:
        path: for errors; absolute on a mounted file system.
        data: all bytes of the file.
        seen: the file's stat before the read, by path; empty for torch's file systems.
    """

    path: str
    data: bytes
    seen: dict[str, FileStat]


def read_metadata_bytes(
    path: str | os.PathLike[str], *, fs: Any, retries: int, stall_timeout_s: float | None
) -> MetadataBytes:
    """All bytes of the file; ``fs`` is torch's ``FileSystemBase``, ``None`` for mounted storage.

    Raises:
        MetadataError: the file is missing or empty, or cannot be read.
        StalledReadError: the storage has not answered in time.
    """
    whole = path if fs is not None else str(Path(path).absolute())
    name = str(whole)
    try:
        with (
            closing(open_source(None if fs is not None else "/", fs=fs)) as source,
            DaemonThreads.for_looks(stall_timeout_s) as thread,
        ):
            read = partial(_read, source, whole, fs, thread.goes_on)
            call = partial(thread.call, lambda: f"{name!r} was being read", read)
            found: MetadataBytes = again(source, call, retries)
    except _MissingForGoodError as error:
        raise _missing(name, is_folder_there=error.is_folder_there) from None
    except FileNotFoundError:
        raise _missing(name, is_folder_there=True) from None
    except FormatError:
        raise MetadataError("is not a regular file", name) from None
    except StalledReadError:
        raise
    except (OSError, MemoryError, ShortFileError) as error:
        raise MetadataError(_unreadable(error), name) from error
    if not found.data:
        raise MetadataError(f"is empty; {_INCOMPLETE}", name)
    return found


class _MissingForGoodError(Exception):
    """The file is missing, and retries would not help."""

    def __init__(self, *, is_folder_there: bool) -> None:
        super().__init__()
        self.is_folder_there = is_folder_there


def _read(source: ByteSource, path: Any, fs: Any, goes_on: Callable[[], None]) -> MetadataBytes:
    try:
        if source.limits.forward_only:
            with cast("StreamingSource", source).open_stream(path) as stream:
                return MetadataBytes(str(path), _read_all(stream, goes_on), {})
        stat = source.stat(path)
        return MetadataBytes(path, _read_pieces(source, path, stat, goes_on), {path: stat})
    except FileNotFoundError:
        if fs is not None:
            is_folder_there, is_final = True, _is_left_out_of(fs, path)
        else:
            # Path.is_dir raises if a folder above cannot be searched.
            is_folder_there = os.path.isdir(Path(path).parent)  # noqa: PTH112
            is_final = not is_folder_there or is_left_out(Path(path))
        if is_final:
            raise _MissingForGoodError(is_folder_there=is_folder_there) from None
        raise


def _is_left_out_of(fs: Any, path: Any) -> bool:
    """As ``is_left_out``. Not every file system can list, so rank 0 stands for all ranks."""
    text = str(path)
    if re.split(r"[/\\]", text)[-1] != GLOBAL_METADATA or not hasattr(fs, "exists"):
        return False
    of_rank_0 = type(path)(f"{text.removesuffix(GLOBAL_METADATA)}__0{GLOBAL_METADATA}")
    return bool(fs.exists(of_rank_0)) and not fs.exists(path)


def _read_all(stream: IO[bytes], goes_on: Callable[[], None]) -> bytes:
    pieces: list[bytes] = []
    while piece := stream.read(_PIECE_BYTES):
        pieces.append(piece)
        goes_on()
    return b"".join(pieces)


def _read_pieces(
    source: ByteSource, path: str, stat: FileStat, goes_on: Callable[[], None]
) -> bytes:
    data = memoryview(bytearray(stat.size))
    for at in range(0, stat.size, _PIECE_BYTES):
        source.read(path, (Read(at, (data[at : at + _PIECE_BYTES],)),))
        goes_on()
    return bytes(data)


def _unreadable(error: Exception) -> str:
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Give this user permission to read it and to enter the folders above it"
    return what


def _missing(name: str, *, is_folder_there: bool) -> MissingMetadataError:
    what = _INCOMPLETE if is_folder_there else "its folder does not exist either"
    return MissingMetadataError(only_ranks(Path(name)) or f"no such file; {what}", name)
