"""Reading ``.metadata``: fast, without running what is in it, and once as long as it is the same.

    path --stat--> kept? -----------------------------------.
      | no                                                  v
      |--> bytes --_plain_metadata--> Columns, kept --> LateMetadata --> Metadata
              |                                   made now, or when somebody looks if it was kept
              `--not plain--> restricted unpickler ------------------> Metadata

What makes torch's own reader slow here is the garbage collector, which walks the new objects again
and again; it is paused.

A file is the same while device, inode, size, mtime and ctime are. One that changed less than two
seconds before it was read is not kept: it could change again within a tick of the file system's
clock.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from paraload._daemons import DaemonThreads
from paraload._gc import collector_paused
from paraload._interrupts import stopped_by_signals
from paraload._late_metadata import LateMetadata, made, stamp
from paraload._opcodes import ExcessError
from paraload._plain_metadata import NotPlainError, columns_in
from paraload._rank_files import GLOBAL_METADATA, is_left_out, only_ranks
from paraload._retry import again
from paraload._soundness import fault_of
from paraload._text import printable
from paraload._unpickler import GlobalRefusedError, unpickle
from paraload.errors import (
    FormatError,
    MetadataError,
    MissingMetadataError,
    StalledReadError,
    UnsafeMetadataError,
)
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.sources._base import FileIdentity
from paraload.sources._open import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.distributed.checkpoint.metadata import Metadata

    from paraload._columns import Columns

__all__ = ["forget", "identity_of", "read_metadata"]

Answer = TypeVar("Answer")

_MOST_FILES: Final = 4
#: Of the files; what is kept of them takes a third.
_MOST_BYTES: Final = 64 << 20
SETTLED_AFTER_NS: Final = 2_000_000_000

_INCOMPLETE: Final = "an incomplete checkpoint? This file is written last"
_DAMAGED: Final = "The file is damaged, or a newer torch wrote it"
_SHOWN_OF_NAME: Final = 200
#: The most bytes of one read, as in tasks: each read has the deadline anew.
_PIECE_BYTES: Final = 32 << 20


@stopped_by_signals
def read_metadata(
    path: str | os.PathLike[str],
    *,
    fs: Any = None,
    allow_globals: Iterable[Any] = (),
    load_id: str | None = None,
    retries: int = 0,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
    seen: dict[str, FileIdentity] | None = None,
) -> Metadata:
    """The metadata of a checkpoint.

    Args:
        path: of the ``.metadata`` file.
        fs: torch's ``FileSystemBase`` that has it; a mounted file system when not given.
        allow_globals: what it may name besides the classes of torch's own writers: names
            ("module.name"), or the classes and functions themselves.
        load_id: to be written into its ``storage_meta``.
        retries: how often to try again what the system has refused for the moment.
        stall_timeout_s: how long to wait for an answer from the storage; ``None`` waits forever.
        seen: receives what :func:`identity_of` says about the file before it is read.

    Returns:
        An object of the caller's own: whatever he does to it, the next call does not see it.

    Raises:
        MissingMetadataError: there is no such file.
        UnsafeMetadataError: it names something that is not allowed; nothing was run.
        MetadataError: it is empty, cut, damaged, or no metadata.
        StalledReadError: the storage has not answered in time.
    """
    if fs is None:
        name = str(Path(path).absolute())
        found = _ask(partial(_look, name), name, retries, stall_timeout_s)
        if seen is not None:
            seen |= found.seen
        if found.columns is not None:
            return LateMetadata(found.columns, load_id)
        data, identity = found.data, found.identity
    else:
        name, identity = str(path), None
        data = _read_stream(fs, path, retries, stall_timeout_s)
    if not data:
        raise MetadataError(f"is empty; {_INCOMPLETE}", name)
    try:
        with collector_paused():
            columns = columns_in(data)
    except NotPlainError:
        return _unpickled(data, name, tuple(allow_globals), load_id)
    if identity is not None:
        _cache.put(name, identity, columns)
    return made(LateMetadata(columns, load_id))


def forget() -> None:
    """Drop what is kept of files, and its memory."""
    _cache.clear()


# ------------------------------------------------------------------------------------ not plain


def _unpickled(
    data: bytes, name: str, allow_globals: tuple[Any, ...], load_id: str | None
) -> Metadata:
    with collector_paused():
        try:
            metadata: Metadata = unpickle(data, allow_globals)
        except GlobalRefusedError as error:
            raise _unsafe(error, name) from None
        except Exception as error:  # unpickling damaged bytes can raise anything
            is_told = isinstance(error, ExcessError)  # in words for whoever reads them
            what = str(error) if is_told else printable(f"{type(error).__name__}: {error}")
            raise MetadataError(f"cannot be unpickled ({what}). {_DAMAGED}", name) from error
        fault = fault_of(metadata, is_torchs=not allow_globals)
    if fault is not None:
        raise MetadataError(f"{fault}. {_DAMAGED}", name)
    stamp(metadata, load_id)
    return metadata


def _unsafe(error: GlobalRefusedError, name: str) -> UnsafeMetadataError:
    shown = error.name[:_SHOWN_OF_NAME]
    if error.is_class and shown == error.name:
        what = (
            "which the metadata of torch's writers does not; nothing was executed. The file is"
            " damaged, a newer torch wrote it, or it was made to run code here. If your own writer"
            f" puts this class into it, allow it: allow_globals=({shown!r},) or"
            f" PARALOAD_ALLOW_GLOBALS={shown}"
        )
    elif error.is_new:
        what = (
            "which this version of torch does not have; nothing was executed. A newer torch wrote"
            " the file, or it is damaged"
        )
    else:
        what = (
            "which metadata never needs; nothing was executed. Do not trust this file: it is"
            " damaged, or it was made to run code here"
        )
    return UnsafeMetadataError(f"names {shown!r}, {what}", name, shown)


# --------------------------------------------------------------------------------------- reading


def identity_of(path: str | os.PathLike[str]) -> dict[str, FileIdentity]:
    """What the file is now, by its whole name; nothing if it cannot be looked at."""
    name = str(Path(path).absolute())
    try:
        return {name: FileIdentity.of(Path(name).stat())}
    except OSError:
        return {}  # to read it will tell why


def _is_settled(identity: FileIdentity, now_ns: int) -> bool:
    return now_ns - max(identity.mtime_ns, identity.ctime_ns) > SETTLED_AFTER_NS


class _MissingForGoodError(Exception):
    """The file is missing, and retries would not help."""

    def __init__(self, *, is_folder_there: bool) -> None:
        super().__init__()
        self.is_folder_there = is_folder_there


class _Found(NamedTuple):
    """A metadata file: its cached columns, or its bytes and identity."""

    seen: dict[str, FileIdentity]
    columns: Columns | None = None
    data: bytes = b""
    #: ``None`` if the file may be changing just now.
    identity: FileIdentity | None = None


def _ask(
    read: Callable[[Callable[[], None]], Answer],
    name: str,
    retries: int,
    stall_timeout_s: float | None,
) -> Answer:
    """What ``read`` returns, with retries and a deadline.

    Raises:
        MetadataError: the file is missing, or cannot be read.
        StalledReadError: the storage has not answered in time.
    """
    try:
        with DaemonThreads.for_looks(stall_timeout_s) as thread:
            ask = partial(thread.call, lambda: f"{name!r} was being read", read, thread.goes_on)
            found: Answer = again(ask, retries)
    except _MissingForGoodError as error:
        raise _missing(name, is_folder_there=error.is_folder_there) from None
    except FileNotFoundError:
        raise _missing(name, is_folder_there=True) from None
    except StalledReadError:
        raise
    except (OSError, MemoryError) as error:
        raise MetadataError(_unreadable(error), name) from error
    return found


def _look(name: str, goes_on: Callable[[], None]) -> _Found:
    seen = identity_of(name)
    if (columns := _cache.get(name)) is not None:
        return _Found(seen, columns)
    now_ns = time.time_ns()
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
        identity = FileIdentity.of(os.fstat(file.fileno()))
        data = _all_of(file, identity.size_bytes, goes_on)
        is_same = identity == FileIdentity.of(os.fstat(file.fileno()))
    is_whole = is_same and len(data) == identity.size_bytes
    return _Found(
        seen, data=data, identity=identity if is_whole and _is_settled(identity, now_ns) else None
    )


def _all_of(stream: IO[bytes], size_bytes: int, goes_on: Callable[[], None]) -> bytes:
    """All bytes of a stream that is expected to have ``size_bytes``, read piece by piece."""
    pieces: list[bytes] = []
    left = size_bytes
    while piece := stream.read(min(max(left, 0) + 1, _PIECE_BYTES)):
        pieces.append(piece)
        left -= len(piece)
        goes_on()
    return b"".join(pieces)


def _read_stream(fs: Any, path: Any, retries: int, stall_timeout_s: float | None) -> bytes:
    def read(goes_on: Callable[[], None]) -> bytes:
        try:
            with fs.create_stream(path, "rb") as stream:
                return _all_of(stream, sys.maxsize, goes_on)
        except FileNotFoundError:
            if is_final():
                raise _MissingForGoodError(is_folder_there=True) from None
            raise

    def is_final() -> bool:
        # Not every file system can list, so the file of rank 0 stands for those of all ranks.
        text = str(path)
        if re.split(r"[/\\]", text)[-1] != GLOBAL_METADATA or not hasattr(fs, "exists"):
            return False
        of_rank_0 = type(path)(f"{text.removesuffix(GLOBAL_METADATA)}__0{GLOBAL_METADATA}")
        return bool(fs.exists(of_rank_0)) and not fs.exists(path)

    return _ask(read, str(path), retries, stall_timeout_s)


def _unreadable(error: Exception) -> str:
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Give this user permission to read it and to enter the folders above it"
    return what


def _missing(name: str, *, is_folder_there: bool) -> MissingMetadataError:
    what = _INCOMPLETE if is_folder_there else "its folder does not exist either"
    return MissingMetadataError(only_ranks(Path(name)) or f"no such file; {what}", name)


# --------------------------------------------------------------------------------------- keeping


class _Cache:
    """Columns of the files that were read last, as long as the files are the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, tuple[FileIdentity, Columns]] = OrderedDict()

    def get(self, name: str) -> Columns | None:
        with self._lock:
            identity, columns = self._files.get(name, (None, None))
        if identity is None:
            return None
        try:
            is_same = FileIdentity.of(Path(name).stat()) == identity
        except OSError:
            is_same = False
        with self._lock:
            if not is_same:
                self._files.pop(name, None)
                return None
            if name in self._files:
                self._files.move_to_end(name)
        return columns

    def put(self, name: str, identity: FileIdentity, columns: Columns) -> None:
        with self._lock:
            self._files[name] = identity, columns
            self._files.move_to_end(name)
            while len(self._files) > _MOST_FILES or self._size_bytes() > _MOST_BYTES:
                self._files.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._files.clear()

    def _size_bytes(self) -> int:
        return sum(identity.size_bytes for identity, _ in self._files.values())


_cache: Final = _Cache()
