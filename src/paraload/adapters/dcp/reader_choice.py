"""Which reader suits a path or URL, and what tools need of it."""

import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.readers import ParallelFileSystemReader
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.adapters.dcp.urls import dcp_reader, local_path, split_file
from paraload.metadata.dcp_index import index_of
from paraload.metadata.folder import FolderMetadata, folder_metadata
from paraload.metadata.listing import files_without_metadata
from paraload.metadata.rank_files import GLOBAL_METADATA, rank_files_among
from paraload.metadata.safetensors_folder import INDEX_SUFFIX, SUFFIX
from paraload.sources import ByteSource

Reader = ParallelFileSystemReader | SourceReader


def reader_for(path: str | os.PathLike[str], **keywords: Any) -> Reader:
    """A reader of the checkpoint at ``path``: DCP's, or safetensors.

    ``keywords`` are fields of ``ReadOptions``, ``storage_options``, and for a URL also the options
    of its storage themselves.
    """
    if split_file(path)[1] is not None:
        return ParallelHuggingFaceReader(path, **keywords)
    path = local_path(path)
    reader = dcp_reader(path, **keywords)
    options = options_of(reader)
    with closing(make_source(reader)) as source:
        names = files_without_metadata(
            source,
            path=str(reader.path),
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
        )
    return ParallelHuggingFaceReader(path, **keywords) if _is_safetensors(names) else reader


def _is_safetensors(names: Sequence[str]) -> bool:
    has_dcp = GLOBAL_METADATA in names or rank_files_among(names)
    suffixes = (SUFFIX, INDEX_SUFFIX)
    return not has_dcp and any(name.endswith(suffixes) and "/" not in name for name in names)


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
