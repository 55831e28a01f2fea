"""Which reader suits a URL."""

import importlib.util
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from paraload._text import without_credentials
from paraload.adapters.dcp.readers import ParallelFileSystemReader, SourceReader
from paraload.errors import InvalidOptionError

#: What obstore reads; it is the faster one where both could.
_OBJECT_STORES: Final = frozenset(
    {"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"}
)


def is_url(path: Any) -> bool:
    return not isinstance(path, Path) and "://" in os.fspath(path)


def url_reader(url: str, **keywords: Any) -> ParallelFileSystemReader | SourceReader:
    """The reader for the DCP checkpoint at ``url``.

    ``keywords`` are fields of ``ReadOptions`` and options of the storage, by the names of obstore
    (S3, GCS, Azure, HTTP) or of the fsspec file system (all others).

    Raises:
        InvalidOptionError: an option is invalid, or the package that reads this URL is missing.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme == "file":
        return ParallelFileSystemReader(url2pathname(urlsplit(url).path), **keywords)
    if scheme in _OBJECT_STORES:
        if importlib.util.find_spec("obstore") is None:
            raise InvalidOptionError(
                f"{without_credentials(url)!r} is read with obstore:"
                " pip install 'paraload[object-store]'. Or read it with ParallelFsspecReader"
            )
        from paraload.adapters.dcp.object_store import (  # noqa: PLC0415 - an extra
            ParallelObjectStoreReader,
        )

        return ParallelObjectStoreReader(url, **keywords)
    from paraload.adapters.dcp.fsspec_reader import ParallelFsspecReader  # noqa: PLC0415 - likewise

    return ParallelFsspecReader(url, **keywords)
