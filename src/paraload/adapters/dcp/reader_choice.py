"""Which reader suits a path or URL, and what tools need of it."""

import os
from typing import Any

from paraload._text import without_credentials
from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.readers import ParallelFileSystemReader, SourceReader
from paraload.errors import InvalidOptionError
from paraload.metadata.folder import FolderMetadata, folder_metadata
from paraload.sources import ByteSource

Reader = ParallelFileSystemReader | SourceReader


def is_url(path: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(path)


def reader_for(path: str | os.PathLike[str], **keywords: Any) -> Reader:
    """A reader of the checkpoint at ``path``."""
    if is_url(path):
        shown = without_credentials(os.fspath(path))
        raise InvalidOptionError(
            f"{shown!r} is a URL; this version reads folders of a mounted file system"
        )
    return ParallelFileSystemReader(path, **keywords)


def make_source(reader: Reader) -> ByteSource:
    """The source of the reader's files; the caller closes it."""
    return reader._make_source()  # noqa: SLF001 - a step of readers


def metadata_of_all(reader: Reader) -> FolderMetadata:
    """The metadata of all ranks."""
    options = options_of(reader)
    return folder_metadata(
        reader.path,
        source=make_source(reader) if isinstance(reader, SourceReader) else None,
        allow_globals=options.allow_globals,
        retries=options.retries,
        stall_timeout_s=options.stall_timeout_s,
    )
