"""The metadata of a DCP checkpoint, read with the options of a reader."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from paraload.adapters.dcp.reader_config import options_of
from paraload.metadata.file_bytes import MetadataFile
from paraload.metadata.listing import Look
from paraload.metadata.reading import read_metadata
from paraload.metadata.safetensors_records import holds_safetensors, locate_safetensors
from paraload.sources import ByteSource, FileStat


def taken_look(reader: Any) -> Look | None:
    """What choosing ``reader`` found, for one use: later, the files may be others."""
    look: Look | None = getattr(reader, "_look", None)
    if look is not None:
        reader._look = None  # noqa: SLF001
    return look


@contextmanager
def kept_for_data(source: ByteSource) -> Iterator[None]:
    """Leave ``source`` open for the data, unless the block raises an error."""
    try:
        yield
    except BaseException:
        source.close()
        raise


def read_metadata_with(
    reader: Any,
    file: MetadataFile,
    seen: dict[str, FileStat],
    make_source: Callable[[], ByteSource],
) -> Metadata:
    options = options_of(reader)
    metadata = read_metadata(
        file,
        allow_globals=options.allow_globals,
        load_id=reader.load_id,
        retries=options.retries,
        stall_timeout_s=options.stall_timeout_s,
        seen=seen,
    )
    if holds_safetensors(metadata):
        locate_safetensors(
            metadata,
            make_source,
            path=str(reader.path),
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
        )
    return metadata
