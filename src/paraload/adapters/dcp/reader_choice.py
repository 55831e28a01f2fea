"""Which reader suits a path or URL, and what tools need of it."""

import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.reader_metadata import kept_for_data, taken_look
from paraload.adapters.dcp.readers import ParallelFileSystemReader
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.adapters.dcp.urls import dcp_reader, local_path, split_file
from paraload.metadata.dcp_index import index_of
from paraload.metadata.folder import FolderMetadata, folder_metadata
from paraload.metadata.listing import look_at
from paraload.metadata.rank_files import GLOBAL_METADATA, rank_files_among
from paraload.metadata.safetensors_folder import INDEX_SUFFIX, SUFFIX
from paraload.metadata.safetensors_headers import FileReader
from paraload.sources import ByteSource, FileStat
from paraload.sources.retrying import is_transient

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
    source = source_of(reader)
    with nullcontext() if isinstance(reader, SourceReader) else closing(source):
        look = look_at(
            source,
            path=str(reader.path),
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
        )
    if _is_safetensors(look.names):
        found = ParallelHuggingFaceReader(path, **keywords)
        found._kept = reader._kept  # noqa: SLF001
        return found
    reader._look = look  # noqa: SLF001
    return reader


def _is_safetensors(names: Sequence[str]) -> bool:
    has_dcp = GLOBAL_METADATA in names or rank_files_among(names)
    suffixes = (SUFFIX, INDEX_SUFFIX)
    return not has_dcp and any(name.endswith(suffixes) and "/" not in name for name in names)


def source_of(reader: Reader) -> ByteSource:
    """The source of the reader's files; the caller closes it when the last one has been read."""
    return reader._source_of_load()  # noqa: SLF001


def file_stat(reader: Reader, name: str) -> FileStat:
    """Size and version of a file in the folder of ``reader``.

    Raises:
        ItemReadError: the file is missing, or the storage cannot be read.
        StalledReadError: the storage has not answered in time.
    """
    options = options_of(reader)
    with FileReader(
        source_of(reader),
        path=str(reader.path),
        retries=options.retries,
        stall_timeout_s=options.stall_timeout_s,
    ) as files:
        found: FileStat = files.whole(files.answers([name], lambda it, path: it.stat(path)))[0]
    return found


def has_not_answered(reader: Reader, error: Exception) -> bool:
    """Whether ``error`` says that a remote storage gave no answer, in spite of all retries."""
    cause = error.__cause__
    return (
        isinstance(reader, SourceReader)
        and isinstance(cause, Exception)
        and is_transient(source_of(reader), cause)
    )


def metadata_of_all(reader: Reader) -> FolderMetadata:
    """The metadata of all ranks."""
    if isinstance(reader, ParallelHuggingFaceReader):
        metadata = reader.read_metadata()
        seen = reader._metadata_before  # noqa: SLF001 - not part of torch's interface
        index = index_of(metadata)
        return FolderMetadata(metadata=metadata, index=index, seen=seen, is_dcp=False)
    options = options_of(reader)
    source = source_of(reader) if isinstance(reader, SourceReader) else None
    with nullcontext() if source is None else kept_for_data(source):
        return folder_metadata(
            reader.path,
            source=source,
            look=taken_look(reader),
            allow_globals=options.allow_globals,
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
        )
