"""Which reader suits a URL."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from urllib.request import url2pathname

from paraload.adapters.dcp.readers import ParallelFileSystemReader
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.errors import InvalidOptionError
from paraload.metadata.safetensors_folder import INDEX_SUFFIX, SUFFIX
from paraload.sources.urls import split_url

#: Schemes that obstore reads. fsspec could read most of them, but more slowly.
_OBJECT_STORES: Final = frozenset(
    {"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"}
)


def require_path(path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise InvalidOptionError(f"path: expected a path or URL, got a {type(path).__name__}")


def is_url(path: Any) -> bool:
    return not isinstance(path, Path) and "://" in os.fspath(path)


def refuse_storage_options(path: Any, storage_options: Mapping[str, Any] | None) -> None:
    """Raise an error if there are options of a storage for ``path``, which is no URL."""
    if storage_options:
        raise InvalidOptionError(f"storage_options= are for URLs; {path!r} is not one")


def local_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path that a ``file://`` URL names; every other URL or path as it is."""
    if is_url(path) and (parts := split_url(os.fspath(path))).scheme.lower() == "file":
        return url2pathname(parts.path)
    return path


def split_file(
    path: str | os.PathLike[str], endings: tuple[str, ...] = (SUFFIX, INDEX_SUFFIX)
) -> tuple[str, str | None]:
    """Split the path or URL of a file, by default safetensors or their index, into folder and name.

    The name alone decides, because not every storage can tell a folder from a file. The query of a
    URL (a signature) stays with the folder, whose quoted characters the storage itself decodes.

    >>> split_file("https://host/step-1000/model.safetensors?download=true")
    ('https://host/step-1000?download=true', 'model.safetensors')
    >>> split_file("https://host/step%201/my%20model.safetensors")
    ('https://host/step%201', 'my model.safetensors')
    >>> split_file("https://host/step-1000")
    ('https://host/step-1000', None)
    """
    whole = os.fspath(path)
    place, mark, query = whole.partition("?") if is_url(path) else (whole, "", "")
    if not place.endswith(endings):
        return whole, None
    folder, name = os.path.split(place)
    if place.lower().startswith(("http://", "https://")):
        name = unquote(name)
    return folder + mark + query, name


def dcp_reader(
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> ParallelFileSystemReader | SourceReader:
    """The reader for the DCP checkpoint at a path or URL.

    ``keywords`` are fields of ``ReadOptions`` and options of the storage, by the names of obstore
    (S3, GCS, Azure, HTTP) or of the fsspec file system (all others).

    Raises:
        InvalidOptionError: an option is invalid, or the package that reads this URL is missing.
    """
    path = local_path(path)
    if not is_url(path):
        refuse_storage_options(path, storage_options)
        return ParallelFileSystemReader(path, **keywords)
    url = os.fspath(path)
    if split_url(url).scheme.lower() in _OBJECT_STORES:
        from paraload.adapters.dcp.object_store import (  # noqa: PLC0415 - an extra
            ParallelObjectStoreReader,
        )

        return ParallelObjectStoreReader(url, storage_options=storage_options, **keywords)
    from paraload.adapters.dcp.fsspec_reader import ParallelFsspecReader  # noqa: PLC0415 - likewise

    return ParallelFsspecReader(url, storage_options=storage_options, **keywords)
