"""Files of any fsspec file system: ``http://``, ``memory://``, ``zip://``, ``hf://``, ``sftp://``.

    asynchronous file systems       cat_file of each range, from many threads at once
      among them HTTP               the body is copied straight from the connection
    others without a cat_file       seek and readinto of a file that stays open

One thread runs the event loop of all asynchronous file systems. The threads that call ``cat_file``
copy bodies while others arrive: eight files over HTTP take 0.75 of the time of ``cat_ranges``.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote, unquote

from paraload.errors import (
    FormatError,
    InvalidOptionError,
    MissingFileError,
    ShortFileError,
    StorageReadError,
)
from paraload.sources import FileStat, Read, ReadStats
from paraload.sources.buffers import scatter
from paraload.sources.fsspec_errors import Redaction, TransientError, error_of, status_of
from paraload.sources.fsspec_http import BEYOND_THE_END, NO_RANGES_HINT, BodyCopies
from paraload.sources.fsspec_kinds import Kind, fsspec_class, module, not_installed
from paraload.sources.range_stream import range_stream
from paraload.sources.urls import without_credentials

Answer = TypeVar("Answer")

#: Keys of ``info`` that change with the content of a file.
_VERSIONS: Final = (
    *("ETag", "etag", "e_tag", "VersionId", "generation", "blob_id", "sha"),
    *("Content-MD5", "content_md5", "md5Hash", "checksum", "chksum", "CRC"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modify", "ino"),
    *("modificationTime", "date_time"),
)
_MAX_KEPT_FILES: Final = 32


class FsspecSource:
    """:class:`~paraload.sources.ByteSource` over an fsspec file system.

    Args:
        root: a URL, chained ones too, or a path of ``fs``: the folder of the checkpoint.
        fs: the file system. Without it, ``root`` and ``storage_options`` make one that belongs to
            this source, and :meth:`close` closes its connections.
        **storage_options: of the file system, by fsspec's names.
    """

    def __init__(
        self, root: str | os.PathLike[str], fs: Any = None, **storage_options: Any
    ) -> None:
        self._url = os.fspath(root)
        self._options = storage_options
        self._given = fs
        self._opened: tuple[Any, str] | None = None
        self._of_parent: object = None
        self._kept: list[tuple[str, IO[bytes]]] = []
        self._copies = BodyCopies()
        self._lock = threading.Lock()
        self._turn = threading.RLock()  # for file systems that allow one call at a time
        self._redact = Redaction(self._url, storage_options, getattr(fs, "storage_options", None))
        self._kind = kind = Kind.of(fsspec_class(self._url) if fs is None else type(fs))
        self.limits = kind.limits
        self.not_in_processes = kind.not_in_processes

    def __reduce__(self) -> tuple[Callable[..., FsspecSource], tuple[str, Any]]:
        return partial(FsspecSource, **self._options), (self._url, self._given)

    def stat(self, path: str) -> FileStat:
        info = self._call(path, _info)
        if info.get("type", "file") != "file":
            raise FormatError("not a regular file", path=path, got=str(info["type"]))
        if info.get("size") is None:
            raise StorageReadError(
                "the storage does not say how long the file is",
                path=path,
                hint="A server must send Content-Length",
            )
        versions = tuple(info[name] for name in _VERSIONS if info.get(name))
        return FileStat(int(info["size"]), versions or info.get("created"))

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        copies = self._copies  # before any range: a close() from now on ends this read
        for start, buffers in reads:
            if start < 0:
                raise FormatError("range begins before the file", path=path, start=start, end=start)
            wanted = sum(map(len, buffers))
            got = self._call(path, self._fill, copies, start, buffers) if wanted else 0
            if got != wanted:
                self._refuse(path, start, start + wanted, got)
        return ReadStats(requests=len(reads))

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, TransientError) and not self._kind.retries_itself

    def list_files(self) -> Iterator[str]:
        try:
            found = self._call("", _found)
        except (MissingFileError, StorageReadError):
            if not self._kind.is_http:
                raise
            return  # most servers do not list files
        root = self._file_system()[1].partition("?")[0].rstrip("/")
        for name in found:
            path = name.removeprefix(f"{root}/") if root else name
            yield unquote(path) if self._kind.is_http else path

    def list_folder(self, folder: str) -> Iterator[str]:
        try:
            found = self._call(folder, _in_folder)
        except MissingFileError:
            return  # object stores have no folders either, only names
        except StorageReadError:
            if not self._kind.is_http:
                raise
            return
        for name in found:
            yield unquote(name) if self._kind.is_http else name

    def open_stream(self, path: str) -> io.BufferedReader:
        return range_stream(self, path)

    def drop_handle(self, path: str) -> None:
        if self._opened is None:
            return
        full = _joined(self._opened[1], path, quoted=False)
        with self._lock:
            dropped = [file for name, file in self._kept if name == full]
            self._kept = [kept for kept in self._kept if kept[0] != full]
        _close(dropped)

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, []
            opened, self._opened = self._opened, None
            copies, self._copies = self._copies, BodyCopies()
        copies.close()
        _close(file for _, file in kept)
        if opened is not None and self._given is None:
            _close_file_system(opened[0])

    def _call(self, path: str, function: Callable[..., Answer], *args: Any) -> Answer:
        """Call with the file's full name. Errors are typed and name no secrets."""
        try:
            with self._turn if self._kind.is_serial else nullcontext():
                fs, root = self._file_system()
                return function(fs, _joined(root, path, quoted=self._kind.is_http), *args)
        except InvalidOptionError:  # the file system needs a package; no file is at fault
            raise
        except Exception as error:  # noqa: BLE001 - file systems raise errors of any type
            hint = f"Is the checkpoint in {without_credentials(self._url)!r} complete?"
            known = error_of(error, path, redact=self._redact, hint=hint)
            if self._kind.retries_itself and isinstance(known, TransientError):
                known = StorageReadError(f"the storage did not answer ({known})", path=path)
        try:
            raise known  # outside of the handler: the context would be the original error
        finally:
            del known  # its traceback refers to this frame

    def _fill(
        self, fs: Any, full: str, copies: BodyCopies, start: int, buffers: Sequence[memoryview]
    ) -> int:
        """Read into ``buffers``; returns how many bytes arrived."""
        if self._kind.copies_bodies:
            return copies.copy(fs, full, start, buffers)
        if self._kind.keeps_files:
            return self._read_kept(fs, full, start, buffers)
        wanted = sum(map(len, buffers))
        try:
            # By keyword: the second parameter of s3fs is a version.
            data = memoryview(fs.cat_file(full, start=start, end=start + wanted))
        except Exception as error:
            if status_of(error) == BEYOND_THE_END:
                return 0
            raise
        if len(data) <= wanted:
            scatter(data, list(buffers))
        return len(data)

    def _read_kept(self, fs: Any, full: str, start: int, buffers: Sequence[memoryview]) -> int:
        with self._lock:
            at = next((n for n, kept in enumerate(self._kept) if kept[0] == full), None)
            file = None if at is None else self._kept.pop(at)[1]
        if file is None:
            file = _open(fs, full)
        got = 0
        try:
            file.seek(start)
            for buffer in buffers:
                filled = 0
                while filled < len(buffer) and (more := file.readinto(buffer[filled:])):  # type: ignore[attr-defined]  # IO lacks it
                    filled += more
                got += filled
                if filled < len(buffer):
                    break
        except BaseException:
            _close([file])
            raise
        with self._lock:
            self._kept.append((full, file))
            surplus = [self._kept.pop(0)[1]] if len(self._kept) > _MAX_KEPT_FILES else []
        _close(surplus)
        return got

    def _refuse(self, path: str, start: int, end: int, got: int) -> None:
        """Raise the error of a read that got another number of bytes."""
        if got > end - start:
            raise StorageReadError(
                "the storage ignores ranges",
                path=path,
                start=start,
                end=end,
                expected=f"{end - start} bytes",
                got=f"{got}",
                hint=NO_RANGES_HINT,
            )
        size = self.stat(path).size
        if end <= size:
            raise TransientError(f"only {got} of {end - start} bytes arrived")
        raise ShortFileError.past_end(path, start, end, size)

    def _file_system(self) -> tuple[Any, str]:
        opened = self._opened
        if opened is not None and not _is_of_parent(opened[0]):
            return opened
        with self._lock:
            if self._opened is not opened and self._opened is not None:
                return self._opened
            self._of_parent = opened  # collecting it here would close connections of the parent
            self._opened = opened = self._open_file_system()
            return opened

    def _open_file_system(self) -> tuple[Any, str]:
        if self._given is None:
            # An instance of its own, so that closing it does not disturb others.
            options = {"skip_instance_cache": True, **self._options}
            try:
                made: tuple[Any, str] = module("core").url_to_fs(self._url, **options)
            except ImportError as error:  # some import their package here, such as hdfs://
                raise not_installed(self._url, error) from error
            return made
        fs = self._given
        if _is_of_parent(fs):
            make, args = fs.__reduce__()
            fs = make(*args)
        return fs, fs._strip_protocol(self._url)  # noqa: SLF001 - what url_to_fs calls


def _is_of_parent(fs: Any) -> bool:
    """Whether this process was forked and has no event loop for ``fs``."""
    return getattr(fs, "_pid", None) not in {None, os.getpid()}


def _joined(root: str, path: str, *, quoted: bool) -> str:
    """The name of ``path`` below ``root``; the query of a URL (a signature) stays at the end."""
    if not root:
        return path
    if not quoted:
        return f"{root.rstrip('/')}/{path}"
    folder, mark, query = root.partition("?")
    return f"{folder.rstrip('/')}/{quote(path)}{mark}{query}"


def _info(fs: Any, full: str) -> dict[str, Any]:
    fs.invalidate_cache(full)  # a listing may be older than the file
    info: dict[str, Any] = fs.info(full)
    return info


def _found(fs: Any, folder: str) -> list[str]:
    fs.invalidate_cache(folder)
    found: list[str] = fs.find(folder)
    return found


def _in_folder(fs: Any, folder: str) -> list[str]:
    """The last parts of the names; those of folders end with a slash."""
    fs.invalidate_cache(folder)
    names = []
    for entry in fs.ls(folder, detail=True):
        name = entry["name"].partition("?")[0].rstrip("/").rpartition("/")[2]
        names.append(name + "/" * (entry["type"] == "directory"))
    return names


def _open(fs: Any, full: str) -> IO[bytes]:
    file: IO[bytes]
    try:
        # The default reads 5 MiB ahead of each range.
        file = fs.open(full, "rb", cache_type="none")
    except TypeError:  # this file system has no caches
        file = fs.open(full, "rb")
    return file


def _close(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        with suppress(Exception):  # what was read is valid
            file.close()


def _close_file_system(fs: Any) -> None:
    """Close connections now; fsspec itself would wait for the garbage collector."""
    session = getattr(fs, "_session", None) or getattr(fs, "_s3", None)
    with suppress(Exception):
        if session is not None and hasattr(fs, "close_session"):
            fs.close_session(fs.loop, session)
        elif hasattr(fs, "fo"):  # an archive
            fs.fo.close()
