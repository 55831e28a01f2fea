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
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from paraload._gc import collector_paused
from paraload._global_names import printable
from paraload._interrupts import stopped_by_signals
from paraload._late_metadata import LateMetadata, made, stamp
from paraload._opcodes import ExcessError
from paraload._plain_metadata import NotPlainError, columns_in
from paraload._rank_files import GLOBAL_METADATA, is_left_out, only_ranks
from paraload._retry import again
from paraload._soundness import fault_of
from paraload._unpickler import GlobalRefusedError, unpickle
from paraload.errors import FormatError, MetadataError, MissingMetadataError, UnsafeMetadataError
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

_INCOMPLETE: Final = "an incomplete checkpoint? This file is written when all else is there"
_DAMAGED: Final = "The file is damaged, or a newer torch wrote it"
_SHOWN_OF_NAME: Final = 200


@stopped_by_signals
def read_metadata(
    path: str | os.PathLike[str],
    *,
    fs: Any = None,
    allow_globals: Iterable[Any] = (),
    load_id: str | None = None,
    retries: int = 0,
) -> Metadata:
    """The metadata of a checkpoint.

    Args:
        path: of the ``.metadata`` file.
        fs: torch's ``FileSystemBase`` that has it; a mounted file system when not given.
        allow_globals: what it may name besides the classes of torch's own writers: names
            ("module.name"), or the classes and functions themselves.
        load_id: to be written into its ``storage_meta``.
        retries: how often to try again what the system has refused for the moment.

    Returns:
        An object of the caller's own: whatever he does to it, the next call does not see it.

    Raises:
        MissingMetadataError: there is no such file.
        UnsafeMetadataError: it names something that is not allowed; nothing was run.
        MetadataError: it is empty, cut, damaged, or no metadata.
    """
    if fs is None:
        name = str(Path(path).absolute())
        if (columns := _cache.get(name)) is not None:
            return LateMetadata(columns, load_id)
        data, identity = _read_file(name, retries)
    else:
        name, data, identity = str(path), _read_stream(fs, path, retries), None
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


def _read_file(name: str, retries: int) -> tuple[bytes, FileIdentity | None]:
    """The bytes, and what to know the file by; ``None`` if it may be changing just now."""
    now_ns = time.time_ns()
    # Path.is_dir raises where a folder above may not be searched.
    is_folder_there = os.path.isdir(Path(name).parent)  # noqa: PTH112
    try:
        before, data, after = _again(
            lambda: _bytes_of(name),
            retries if is_folder_there else 0,
            lambda: is_left_out(Path(name)),
        )
    except FileNotFoundError:
        raise _missing(name, is_folder_there=is_folder_there) from None
    except (OSError, MemoryError) as error:
        raise MetadataError(_unreadable(error), name) from error
    identity = FileIdentity.of(before)
    is_same = identity == FileIdentity.of(after) and len(data) == identity.size_bytes
    return data, identity if is_same and _is_settled(identity, now_ns) else None


class _LeftOutError(Exception):
    """The file is missing for good: no ``OSError``, so that it is not looked for again."""


def _again(read: Callable[[], Answer], retries: int, is_final: Callable[[], bool]) -> Answer:
    """What ``read`` returns, tried again unless its file was left out by the writer."""

    def once() -> Answer:
        try:
            return read()
        except FileNotFoundError:
            if is_final():
                raise _LeftOutError from None
            raise

    try:
        return again(once, retries)
    except _LeftOutError:
        raise FileNotFoundError from None


def _bytes_of(name: str) -> tuple[os.stat_result, bytes, os.stat_result]:
    """All of them, and what the file was before and after."""
    try:
        file = open_regular(name)
    except FormatError:
        raise MetadataError("is no regular file", name) from None
    with file:
        return os.fstat(file.fileno()), file.read(), os.fstat(file.fileno())


def _read_stream(fs: Any, path: Any, retries: int) -> bytes:
    def read() -> bytes:
        with fs.create_stream(path, "rb") as stream:
            data: bytes = stream.read()
        return data

    def is_final() -> bool:
        # Like torch's writer: not every file system can list, so rank 0 stands for all.
        text = str(path)
        if re.split(r"[/\\]", text)[-1] != GLOBAL_METADATA or not hasattr(fs, "exists"):
            return False
        of_rank_0 = type(path)(f"{text.removesuffix(GLOBAL_METADATA)}__0{GLOBAL_METADATA}")
        return bool(fs.exists(of_rank_0)) and not fs.exists(path)

    try:
        return _again(read, retries, is_final)
    except FileNotFoundError:
        raise _missing(str(path), is_folder_there=True) from None
    except OSError as error:
        raise MetadataError(_unreadable(error), str(path)) from error


def _unreadable(error: Exception) -> str:
    what = f"cannot be read ({type(error).__name__}: {error})"
    if isinstance(error, PermissionError):
        what += ". Let this user read it, and search all folders on the way to it"
    return what


def _missing(name: str, *, is_folder_there: bool) -> MissingMetadataError:
    what = _INCOMPLETE if is_folder_there else "nor is there its folder"
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
