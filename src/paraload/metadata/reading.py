"""Reading ``.metadata`` without running what is in it.

path --_metadata_bytes--> bytes --_metadata_parsing--> Metadata
         stat, retries,             restricted unpickler,
         deadline                   validation
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from paraload.metadata.file_bytes import read_metadata_bytes
from paraload.metadata.parsing import parse_metadata
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import FileStat


@stopped_by_signals
def read_metadata(
    path: str | os.PathLike[str],
    *,
    fs: Any = None,
    allow_globals: Iterable[Any] = (),
    load_id: str | None = None,
    retries: int = 0,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
    seen: dict[str, FileStat] | None = None,
) -> Metadata:
    """The metadata of a checkpoint.

    Args:
        path: of the ``.metadata`` file.
        fs: torch's ``FileSystemBase`` that has the file; a mounted file system if not given.
        allow_globals: what the file may name besides the classes of torch's own writers: names
            ("module.name"), or the classes and functions themselves.
        load_id: stored in ``storage_meta``, as torch's reader does.
        retries: how often to retry transient read errors.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.
        seen: receives the file's :class:`~paraload.sources.FileStat` before it is read, by its
            absolute path; nothing of torch's file systems.

    Returns:
        An object of the caller's own: changes to it do not reach other callers.

    Raises:
        MissingMetadataError: there is no such file.
        UnsafeMetadataError: it names something that is not allowed; nothing was run.
        MetadataError: it is empty, cut, damaged, or not metadata.
        StalledReadError: the storage has not answered in time.
    """
    found = read_metadata_bytes(path, fs=fs, retries=retries, stall_timeout_s=stall_timeout_s)
    if seen is not None:
        seen |= found.seen
    metadata = parse_metadata(found.data, path=found.path, allow_globals=tuple(allow_globals))
    if load_id is not None:
        storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        storage_meta.load_id = load_id
        metadata.storage_meta = storage_meta
    return metadata
