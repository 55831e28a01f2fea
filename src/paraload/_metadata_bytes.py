"""The bytes of a metadata file, read with retries and a deadline.

Calls to the storage run on a daemon thread (``_daemons``); the caller's thread waits for them.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from paraload._daemons import DaemonThreads
from paraload._rank_files import GLOBAL_METADATA, is_left_out, only_ranks
from paraload._retry import again
from paraload.errors import FormatError, MetadataError, MissingMetadataError, StalledReadError
from paraload.sources._base import FileIdentity
from paraload.sources._open import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable

#: The most bytes of one read, as in tasks: each read restarts the deadline.
_PIECE_BYTES: Final = 32 << 20
_INCOMPLETE: Final = "an incomplete checkpoint? This file is written last"


class MetadataBytes(NamedTuple):
    """The content of a metadata file.

    Attributes:
        path: for errors; absolute on a mounted file system.
        data: all bytes of the file.
        seen: what :func:`identity_of` said before the read; empty for torch's file systems.
    """

    path: str
    data: bytes
    seen: dict[str, FileIdentity]


def read_metadata_bytes(
    path: str | os.PathLike[str], *, fs: Any, retries: int, stall_timeout_s: float | None
) -> MetadataBytes:
    """All bytes of the file; ``fs`` is torch's ``FileSystemBase``, ``None`` for mounted storage.

    Raises:
        MetadataError: the file is missing or empty, or cannot be read.
        StalledReadError: the storage has not answered in time.
    """
    if fs is None:
        name = str(Path(path).absolute())
        read = partial(_read_file, name)
    else:
        name = str(path)
        read = partial(_read_stream, fs, path)
    try:
        with DaemonThreads.for_looks(stall_timeout_s) as thread:
            call = partial(thread.call, lambda: f"{name!r} was being read", read, thread.goes_on)
            found: MetadataBytes = again(call, retries)
    except _MissingForGoodError as error:
        raise _missing(name, is_folder_there=error.is_folder_there) from None
    except FileNotFoundError:
        raise _missing(name, is_folder_there=True) from None
    except StalledReadError:
        raise
    except (OSError, MemoryError) as error:
        raise MetadataError(_unreadable(error), name) from error
    if not found.data:
        raise MetadataError(f"is empty; {_INCOMPLETE}", name)
    return found


def identity_of(path: str | os.PathLike[str]) -> dict[str, FileIdentity]:
    """The file's identity by its absolute path; empty if ``stat`` fails."""
    name = str(Path(path).absolute())
    try:
        return {name: FileIdentity.of(Path(name).stat())}
    except OSError:
        return {}  # reading the file raises the error


class _MissingForGoodError(Exception):
    """The file is missing, and retries would not help."""

    def __init__(self, *, is_folder_there: bool) -> None:
        super().__init__()
        self.is_folder_there = is_folder_there


def _read_file(name: str, goes_on: Callable[[], None]) -> MetadataBytes:
    seen = identity_of(name)
    try:
        file = open_regular(name)
    except FormatError:
        raise MetadataError("is not a regular file", name) from None
    except FileNotFoundError:
        # Path.is_dir raises if a folder above cannot be searched.
        is_folder_there = os.path.isdir(Path(name).parent)  # noqa: PTH112
        if is_folder_there and not is_left_out(Path(name)):
            raise
        raise _MissingForGoodError(is_folder_there=is_folder_there) from None
    with file:
        return MetadataBytes(name, _read_all(file, goes_on), seen)


def _read_stream(fs: Any, path: Any, goes_on: Callable[[], None]) -> MetadataBytes:
    try:
        with fs.create_stream(path, "rb") as stream:
            return MetadataBytes(str(path), _read_all(stream, goes_on), {})
    except FileNotFoundError:
        if _is_left_out_of(fs, path):
            raise _MissingForGoodError(is_folder_there=True) from None
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


def _unreadable(error: Exception) -> str:
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Give this user permission to read it and to enter the folders above it"
    return what


def _missing(name: str, *, is_folder_there: bool) -> MissingMetadataError:
    what = _INCOMPLETE if is_folder_there else "its folder does not exist either"
    return MissingMetadataError(only_ranks(Path(name)) or f"no such file; {what}", name)
