"""How paraload uses each kind of fsspec file system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from paraload.errors import InvalidOptionError
from paraload.sources import SERVER_RETRIES, SourceLimits

_MIB: Final = 1 << 20
_LOCAL: Final = SourceLimits()
#: ``memory://`` copies each range.
_MEMORY: Final = SourceLimits(max_request_bytes=8 * _MIB, body_bytes=8 * _MIB)
#: 8 MiB take a connection about as long as ten round trips. Bodies are complete in memory before
#: they are copied.
_REMOTE: Final = SourceLimits(
    max_request_bytes=8 * _MIB,
    max_gap_bytes=_MIB,
    head_bytes=64 << 10,
    requests_in_flight=16,
    body_bytes=8 * _MIB,
    retry=SERVER_RETRIES,
)
#: Bodies of HTTP are copied as they arrive.
_HTTP: Final = SourceLimits(
    max_request_bytes=8 * _MIB,
    max_gap_bytes=_MIB,
    head_bytes=64 << 10,
    requests_in_flight=32,
    body_bytes=_MIB,
    retry=SERVER_RETRIES,
)
#: Members of an archive share one file position, and FTP has one connection.
_SERIAL: Final = SourceLimits(
    max_request_bytes=32 * _MIB,
    max_gap_bytes=_MIB,
    head_bytes=64 << 10,
    requests_in_flight=1,
    retry=SERVER_RETRIES,
)

#: These retry by themselves, as those with an attribute ``retries`` do (s3fs, gcsfs).
_RETRYING: Final = frozenset({"abfs", "adl", "az", "hf"})
_HTTP_MODULE: Final = "fsspec.implementations.http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How to use the file systems of one class.

    Attributes:
        limits: what suits the storage.
        is_http: names are URLs.
        copies_bodies: ranges can be copied from the connection.
        is_serial: one call at a time.
        keeps_files: ``cat_file`` would open the file for each range.
        retries_itself: it raises transient errors only after retries of its own.
        not_in_processes: why worker processes cannot read the files; "" if they can.
    """

    limits: SourceLimits
    is_http: bool
    copies_bodies: bool
    is_serial: bool
    keeps_files: bool
    retries_itself: bool
    not_in_processes: str

    @classmethod
    def of(cls, kind: Any) -> Kind:
        protocol = getattr(kind, "protocol", ())
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        is_async = getattr(kind, "async_impl", False)
        is_archive = issubclass(kind, module("archive").AbstractArchiveFileSystem)
        is_serial = is_archive or "ftp" in protocols
        # A subclass with a ``_cat_file`` of its own keeps it.
        read_at = getattr(getattr(kind, "_cat_file", None), "__module__", "")
        copies_bodies = read_at == _HTTP_MODULE
        limits = _HTTP if copies_bodies else _REMOTE
        if is_serial:
            limits = _SERIAL
        elif protocols & {"file", "local"}:
            limits = _LOCAL
        elif "memory" in protocols:
            limits = _MEMORY
        is_memory = "memory" in protocols
        return cls(
            limits=limits,
            is_http=bool(protocols & {"http", "https"}),
            copies_bodies=copies_bodies,
            is_serial=is_serial,
            keeps_files=kind.cat_file is module("spec").AbstractFileSystem.cat_file
            and not is_async,
            retries_itself=hasattr(kind, "retries") or bool(protocols & _RETRYING),
            not_in_processes="memory:// is memory of this process" if is_memory else "",
        )


def fsspec_class(url: str) -> type:
    """The file system class of ``url``.

    Raises:
        InvalidOptionError: fsspec, or the package that has this file system, is not installed.
    """
    protocol = module("utils").get_protocol(url)
    try:
        kind: type = module("registry").get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise not_installed(url, error) from error
    return kind


def not_installed(url: str, error: Exception) -> InvalidOptionError:
    """The error for a URL whose package is missing, or whose protocol is unknown."""
    protocol = module("utils").get_protocol(url)
    return InvalidOptionError(f"{protocol}:// cannot be read: {error}")


def local_root(url: str | os.PathLike[str], fs: Any = None) -> str | None:
    """The local folder that ``url`` or a path of ``fs`` names; ``None`` if it is elsewhere."""
    url = os.fspath(url)
    kind = fsspec_class(url) if fs is None else type(fs)
    if "::" in url or kind is not module("implementations.local").LocalFileSystem:
        return None
    root: str = kind._strip_protocol(url)  # noqa: SLF001 - what url_to_fs calls
    return root


def module(name: str) -> Any:
    try:
        return import_module(f"fsspec.{name}")
    except ModuleNotFoundError as error:
        hint = "URLs are read with fsspec: pip install 'paraload[fsspec]'"
        raise InvalidOptionError(hint) from error
