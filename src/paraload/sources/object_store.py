"""Object stores and HTTP servers, read through obstore.

    range --GET--> body --as it arrives, 256 KiB at once--> buffers

Bodies are never collected: a request in flight holds a few such pieces, however long its range is.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from paraload.errors import ShortFileError, StorageReadError
from paraload.sources import SERVER_RETRIES, FileStat, Read, ReadStats, SourceLimits
from paraload.sources.buffers import scatter
from paraload.sources.obstore_errors import is_head_refused, known_error, panic_text, public_name
from paraload.sources.obstore_stores import make_store
from paraload.sources.urls import without_last_slashes

Answer = TypeVar("Answer")

#: With room for what a file has around the 8 MiB of a tensor.
_REQUEST_BYTES: Final = (8 << 20) + (64 << 10)
#: Pieces in which a body arrives. With 128 connections, 512 KiB took 160 MiB of memory and this
#: takes 90 MiB (so ``body_bytes`` is 1 MiB), at the same speed.
_PIECE_BYTES: Final = 256 << 10


class ObjectStoreSource:
    """:class:`~paraload.sources.ByteSource` below a URL, or in an obstore store.

    obstore does not retry by itself unless ``retry_config`` is passed: paraload retries, so that
    pauses end with the load, and the report counts them. With ``retry_config``, and in a store
    that the caller made, errors are obstore's to retry, and final here.

    If credentials that have worked are refused, a new store is made, which obtains fresh ones, and
    the call is repeated once.

    Args:
        where: ``s3://``, ``gs://``, ``az://``, ``http(s)://`` or ``file://`` URL, or an obstore
            store. ``memory://`` needs a store, because each has content of its own.
        prefix: the folder of the checkpoint, below ``where``.
        **store_options: those of ``obstore.store.from_url``.

    Attributes:
        name: URL of the checkpoint, without credentials.

    Raises:
        InvalidOptionError: obstore is not installed, or refuses the URL or an option.
    """

    # A connection that shares a link with 31 others transfers about 1 MiB in the 50 ms that
    # one more request waits. So tensors of up to 8 MiB are read whole, without one for the header.
    limits = SourceLimits(
        max_request_bytes=_REQUEST_BYTES,
        max_gap_bytes=1 << 20,
        head_bytes=64 << 10,
        requests_in_flight=32,
        body_bytes=1 << 20,
        retry=SERVER_RETRIES,
    )

    def __init__(self, where: Any, prefix: str = "", **store_options: Any) -> None:
        self._where = without_last_slashes(where) if isinstance(where, str) else where
        self._prefix, self._options = prefix.strip("/"), store_options
        self.name = "/".join(filter(None, (public_name(where), self._prefix)))
        self._is_url = isinstance(where, str)
        self._is_retried = self._is_url and "retry_config" not in store_options
        self._lock = threading.Lock()
        self._versions: dict[str, str] = {}
        self._refuses_head = False
        self._accepted: Any = None  # the store, once it has answered
        self._store: Any = self._made()
        if type(self._store).__name__ != "HTTPStore":  # it lists by WebDAV, which few servers have
            self.list_files, self.list_folder = self._list_files, self._list_folder

    def __repr__(self) -> str:
        return f"ObjectStoreSource({self.name!r})"

    def __reduce__(
        self,
    ) -> tuple[Callable[..., ObjectStoreSource], tuple[Any, str], dict[str, Any]]:
        make = partial(ObjectStoreSource, **self._options)
        return make, (self._where, self._prefix), {"_versions": dict(self._versions)}

    def is_transient(self, error: Exception) -> bool:
        # Not StalledReadError, which is a TimeoutError too.
        return self._is_retried and type(error) in {ConnectionError, TimeoutError}

    def stat(self, path: str) -> FileStat:
        found = self._stat(path)
        if found.version is None:
            self._versions.pop(path, None)
        else:
            self._versions[path] = found.version
        return found

    def _stat(self, path: str) -> FileStat:
        meta = self._ask(path, partial(self._head, path))
        return FileStat(meta["size"], _version(meta))

    def _head(self, path: str, store: Any) -> Any:
        """Size and version, from the first byte where the server only allows GET."""
        if not self._refuses_head:
            try:
                return store.head(self._key(path))
            except Exception as error:
                if not is_head_refused(error):
                    raise
                self._refuses_head = True
        return store.get(self._key(path), options={"range": (0, 1)}).meta

    def is_pinned(self, path: str, stat: FileStat) -> bool:
        return stat.version is not None and self._versions.get(path) == stat.version

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        for start, buffers in reads:
            if nbytes := sum(map(len, buffers)):
                self._read(path, start, start + nbytes, buffers)
        return ReadStats(requests=len(reads))

    def _read(self, path: str, start: int, end: int, buffers: Sequence[memoryview]) -> None:
        def get(store: Any) -> Exception | None:
            answer = store.get(self._key(path), options={"range": (start, end)})
            error = self._change(path, answer.meta, store)
            if error is None and answer.range != (start, end):
                error = _short(path, start, end, answer.meta["size"])
            if error is not None:
                return error  # a traceback from here would keep the connection open
            got = _fill(buffers, answer.stream(min_chunk_size=_PIECE_BYTES))
            if got != end - start:
                return ConnectionError(f"{self.name}: body of {got} bytes, not {end - start}")
            return None

        error = None
        try:
            if (error := self._ask(path, get)) is not None:
                raise error
        except StorageReadError:
            # Each store has another error for a range past the end.
            if (size := self._stat(path).size) < end:
                raise _short(path, start, end, size) from None
            raise
        finally:
            del error  # as in _ask: this frame refers to the buffers

    def _change(self, path: str, meta: Any, store: Any) -> Exception | None:
        """The error if this is not the version of the last ``stat``, or else the first response.

        Checking each response ends a long load early, notices replicas that differ, and saves a
        second look at each file. ``If-Match`` needs the server's support.
        """
        version = _version(meta)
        if version is None and path in self._versions:
            # ``is_pinned`` has promised a comparison. Few servers send ETags with HEAD alone.
            version = _version(self._head(path, store))
        if version is None:
            return None
        first = self._versions.setdefault(path, version)
        if version == first:
            return None
        return StorageReadError(
            f"object in {self.name} was replaced while it was read",
            path=path,
            expected=f"version {first}",
            got=f"version {version}",
            hint="Load again when nothing is writing to this place",
        )

    def close(self) -> None:
        """Close all connections, unless the caller made the store."""
        with self._lock:
            self._store = self._accepted = None
            self._versions.clear()

    def _list_files(self) -> Iterator[str]:
        skip = len(self._prefix) + 1 if self._prefix else 0
        for metas in self._ask(None, lambda store: list(store.list(self._prefix or None))):
            yield from (meta["path"][skip:] for meta in metas)

    def _list_folder(self, folder: str) -> Iterator[str]:
        prefix = self._key(folder)
        skip = len(prefix)
        found = self._ask(None, lambda store: store.list_with_delimiter(prefix or None))
        yield from (meta["path"][skip:].lstrip("/") for meta in found["objects"])
        yield from (f"{name[skip:].strip('/')}/" for name in found["common_prefixes"])

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _ask(self, path: str | None, call: Callable[[Any], Answer]) -> Answer:
        """Call with the store; raise our error for one of obstore's."""
        from obstore.exceptions import BaseError  # noqa: PLC0415 - optional

        for may_renew in (True, False):
            store = self._opened()
            try:
                answer = call(store)
            except BaseException as error:
                if not isinstance(error, (BaseError, FileNotFoundError)) and not panic_text(error):
                    raise
                failure = known_error(error, path, self.name)
            else:
                self._accepted = store
                return answer
            is_denied = isinstance(failure, OSError) and failure.errno == errno.EACCES
            if not (may_renew and is_denied and self._is_renewed(store)):
                break
        try:
            raise failure  # not in the except block: tracebacks would show the original error
        finally:
            # This frame belongs to the traceback, so both would live until the garbage collector
            # runs, and with the store its connections.
            del failure, store

    def _opened(self) -> Any:
        with self._lock:
            if self._store is None:
                self._store = self._made()
            return self._store

    def _made(self) -> Any:
        return make_store(self._where, self._options, name=self.name)

    def _is_renewed(self, store: Any) -> bool:
        """Whether there is a new store to try after ``store`` was denied access."""
        with self._lock:
            if self._is_url and self._store is store and self._accepted is store:
                self._store = None
            return self._store is not store


def _version(meta: Any) -> str | None:
    if meta["e_tag"]:
        # Proxies that compress send the same ETag as strong and as weak.
        return str(meta["e_tag"]).removeprefix("W/")
    written = meta["last_modified"]
    return str(written) if written.timestamp() else None  # 1970 where the server does not tell


def _short(path: str, start: int, end: int, size: int) -> ShortFileError:
    return ShortFileError(
        "object ends too early",
        path=path,
        start=start,
        end=end,
        expected=f"at least {end} bytes",
        got=f"{size} bytes",
        hint="The object was cut, or replaced by a shorter one",
    )


def _fill(buffers: Sequence[memoryview], pieces: Iterable[bytes]) -> int:
    """Copy ``pieces`` to ``buffers``, as far as they fit; returns the length of all pieces."""
    left, got = list(buffers), 0
    for piece in pieces:
        got += len(piece)
        scatter(memoryview(piece), left)
    return got
