"""The bytes of a metadata file, read with retries and a deadline.

The storage is called on a daemon thread (``runtime.daemon_threads``); the caller's thread waits.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from paraload.errors import (
    FormatError,
    InvalidOptionError,
    MetadataError,
    MissingMetadataError,
    ShortFileError,
    StalledReadError,
)
from paraload.metadata.folder_contents import names_of_parent
from paraload.metadata.listing import Look
from paraload.metadata.rank_files import (
    may_appear,
    metadata_file,
    why_missing,
    why_missing_among,
)
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource, FileStat, Read, StreamingSource
from paraload.sources.opening import open_source
from paraload.sources.retrying import again
from paraload.sources.urls import without_credentials

#: Maximum length of one read, as in tasks: each read restarts the deadline.
_PIECE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataFile:
    """A metadata file, and how to explain it if it is missing.

    Attributes:
        source: reads the file.
        stays_open: whether ``source`` is needed later, for the data.
        path: the file's path in ``source``.
        name: the file's name in errors.
        errors: what ``source`` raises if the file cannot be read.
        may_appear: returns whether a missing file may appear soon.
        why_missing: returns why the file is missing, for the error.
        stat: the file's size and version, if they are known.
        error: the error of an earlier call that the storage did not answer; it is not called again.
    """

    source: ByteSource
    stays_open: bool = False
    path: Any
    name: str
    errors: tuple[type[Exception], ...] = (OSError, MemoryError, ShortFileError)
    may_appear: Callable[[], bool]
    why_missing: Callable[[], str]
    stat: FileStat | None = None
    error: Exception | None = None

    @classmethod
    def at(
        cls, path: str | os.PathLike[str], fs: Any = None, look: Look | None = None
    ) -> MetadataFile:
        """The file ``path`` in torch's ``FileSystemBase``, or else in a mounted file system."""
        whole: Any = str(Path(path).absolute()) if fs is None else path
        return cls(
            source=open_source("/" if fs is None else None, fs=fs),
            path=whole,
            name=without_credentials(str(whole)),
            may_appear=partial(may_appear, whole, fs),
            why_missing=partial(why_missing, str(whole), fs),
            error=None if look is None else look.error,
        )

    @classmethod
    def of(
        cls, source: ByteSource, rank: int | None, folder: str, look: Look | None = None
    ) -> MetadataFile:
        """The file of ``rank`` in the checkpoint that ``source`` reads, called ``folder``.

        ``source`` stays open, for the data.
        """
        look = look or Look()

        def why_missing() -> str:
            if not hasattr(source, "list_files"):
                return "no such file. Is this the URL of a checkpoint's folder?"
            return why_missing_among(names_of_parent(source), path)

        path = metadata_file(rank)
        return cls(
            source=source,
            stays_open=True,
            path=path,
            name=f"{folder}/{path}",
            errors=(Exception,),  # clients of storages raise errors of their own
            may_appear=lambda: False,
            why_missing=why_missing,
            stat=look.metadata if rank is None else None,
            error=look.error,
        )


def read_metadata_bytes(
    file: MetadataFile,
    *,
    retries: int | None,
    stall_timeout_s: float | None,
    seen: dict[str, FileStat] | None = None,
) -> bytes:
    """All bytes of ``file``; closes its source, unless that stays open.

    Arguments and errors are those of :func:`~paraload.metadata.reading.read_metadata`.
    """
    name = file.name
    end = nullcontext() if file.stays_open else closing(file.source)
    try:
        if file.error is not None:
            raise file.error
        with end, DaemonThreads.for_looks(stall_timeout_s) as thread:
            read = partial(_read, file, seen, thread.goes_on)
            call = partial(thread.call, lambda: f"{name!r} was being read")
            data: bytes | None = again(file.source, partial(call, read), retries)
            why_missing = call(file.why_missing) if data is None else ""
    except FileNotFoundError:
        data, why_missing = None, file.why_missing()
    except FormatError:
        raise MetadataError("is not a regular file", name) from None
    except (InvalidOptionError, StalledReadError):
        raise
    except file.errors as error:
        raise MetadataError(_unreadable(error), name) from error
    if data is None:
        raise MissingMetadataError(why_missing, name)
    if not data:
        raise MetadataError("is empty; an incomplete checkpoint? This file is written last", name)
    return data


def _read(
    file: MetadataFile, seen: dict[str, FileStat] | None, goes_on: Callable[[], None]
) -> bytes | None:
    """The bytes of the file; ``None`` if it is missing, and retries would not help."""
    source, path = file.source, file.path
    try:
        if source.limits.forward_only:
            return _read_stream(source, path, goes_on)
        stat = file.stat or source.stat(path)
        if seen is not None:
            seen[path] = stat
        return _read_pieces(source, path, stat.size, goes_on)
    except FileNotFoundError:
        if file.may_appear():
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
    file = io.BytesIO(bytes(size))  # can be read into, and getvalue() does not copy
    step = min(_PIECE_BYTES, source.limits.max_request_bytes)
    with file.getbuffer() as memory:
        for at in range(0, size, step):
            source.read(path, (Read(at, (memory[at : at + step],)),))
            goes_on()
    return file.getvalue()


def _unreadable(error: Exception) -> str:
    if isinstance(error, NotADirectoryError):
        return (
            "no such file; the path above it is a file. Give the folder of the checkpoint; only"
            " paraload.read takes a file of torch.save"
        )
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Give this user permission to read it and to enter the folders above it"
    return what
