"""Which reader suits a path or URL, and what tools need of it."""

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.readers import ParallelFileSystemReader, SourceReader
from paraload.adapters.dcp.urls import is_url, url_reader
from paraload.metadata.dcp_index import index_of
from paraload.metadata.folder import FolderMetadata, folder_metadata
from paraload.metadata.rank_files import GLOBAL_METADATA, rank_files_among
from paraload.metadata.safetensors_folder import INDEX_SUFFIX, SUFFIX
from paraload.sources import ByteSource

Reader = ParallelFileSystemReader | SourceReader


def reader_for(path: str | os.PathLike[str], **keywords: Any) -> Reader:
    """A reader of the checkpoint at ``path``: DCP's, or safetensors.

    ``keywords`` are fields of ``ReadOptions``, and for a URL options of its storage.
    """
    if os.fspath(path).endswith((SUFFIX, INDEX_SUFFIX)):
        return ParallelHuggingFaceReader(path, **keywords)
    if not is_url(path):
        with suppress(OSError):  # reading the metadata raises the error
            if _is_safetensors([file.name for file in Path(path).iterdir()]):
                return ParallelHuggingFaceReader(path, **keywords)
        return ParallelFileSystemReader(path, **keywords)
    reader = url_reader(os.fspath(path), **keywords)
    with closing(make_source(reader)) as source, suppress(Exception):  # as above
        try:
            source.stat(GLOBAL_METADATA)
        except FileNotFoundError:
            if hasattr(source, "list_files") and _is_safetensors(source.list_files()):
                return ParallelHuggingFaceReader(path, **keywords)
    return reader


def _is_safetensors(names: Any) -> bool:
    names = list(names)
    has_dcp = GLOBAL_METADATA in names or rank_files_among(names)
    return not has_dcp and any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in names)


def make_source(reader: Reader) -> ByteSource:
    """The source of the reader's files; the caller closes it."""
    return reader._make_source()  # noqa: SLF001 - a step of readers


def metadata_of_all(reader: Reader) -> FolderMetadata:
    """The metadata of all ranks."""
    if isinstance(reader, ParallelHuggingFaceReader):
        metadata = reader.read_metadata()
        seen = reader._metadata_before  # noqa: SLF001 - not part of torch's interface
        index = index_of(metadata)
        return FolderMetadata(metadata=metadata, index=index, seen=seen, is_dcp=False)
    options = options_of(reader)
    return folder_metadata(
        reader.path,
        source=make_source(reader) if isinstance(reader, SourceReader) else None,
        allow_globals=options.allow_globals,
        retries=options.retries,
        stall_timeout_s=options.stall_timeout_s,
    )
