"""Reads ``.metadata`` without running what is in it.

file --file_bytes--> bytes --unpickler, validation--> Metadata
        retries,             the collector is paused: torch's own reader spends
        deadline             most of its time on walks of it over the new objects
"""

import os
from collections.abc import Iterable
from typing import Any, Final

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from paraload._text import printable
from paraload.core.pickle_scan import ExcessError
from paraload.errors import MetadataError, UnsafeMetadataError
from paraload.metadata.file_bytes import MetadataFile, read_metadata_bytes
from paraload.metadata.unpickler import GlobalRefusedError, unpickle
from paraload.metadata.validation import metadata_fault
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.runtime.gc_pause import collector_paused
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import FileStat

_DAMAGED: Final = "The file is damaged, or a newer torch wrote it"
_SHOWN_OF_NAME: Final = 200


@stopped_by_signals
def read_metadata(
    file: str | os.PathLike[str] | MetadataFile,
    *,
    allow_globals: Iterable[Any] = (),
    load_id: str | None = None,
    retries: int | None = 0,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
    seen: dict[str, FileStat] | None = None,
) -> Metadata:
    """The metadata of a checkpoint, in objects of the caller's own.

    Args:
        file: the ``.metadata`` file; a path is that of a mounted file system.
        allow_globals: what the file may name besides the classes of torch's own writers: names
            ("module.name"), or the classes and functions themselves.
        load_id: stored in ``storage_meta``, as torch's reader does.
        retries: how often to retry transient read errors; ``None`` as often as suits the storage.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.
        seen: receives the file's stat before it is read, by its path, which is absolute on a
            mounted file system; nothing if its storage only has streams.

    Raises:
        MissingMetadataError: there is no such file.
        UnsafeMetadataError: it names something that is not allowed; nothing was run.
        MetadataError: it is empty, cut, damaged, or not metadata.
        StalledReadError: the storage has not answered in time.
    """
    file = file if isinstance(file, MetadataFile) else MetadataFile.at(file)
    data = read_metadata_bytes(file, retries=retries, stall_timeout_s=stall_timeout_s, seen=seen)
    metadata = _parsed(data, file.name, tuple(allow_globals))
    if load_id is not None:
        storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        storage_meta.load_id = load_id
        metadata.storage_meta = storage_meta
    return metadata


def _parsed(data: bytes, path: str, allow_globals: tuple[Any, ...]) -> Metadata:
    with collector_paused():
        try:
            metadata: Metadata = unpickle(data, allow_globals)
        except GlobalRefusedError as error:
            raise _unsafe(error, path) from None
        except Exception as error:  # unpickling damaged bytes can raise anything
            is_worded = isinstance(error, ExcessError)
            what = str(error) if is_worded else printable(f"{type(error).__name__}: {error}")
            raise MetadataError(f"cannot be unpickled ({what}). {_DAMAGED}", path) from error
        fault = metadata_fault(metadata, is_torchs=not allow_globals)
    if fault is not None:
        raise MetadataError(f"{fault}. {_DAMAGED}", path)
    return metadata


def _unsafe(error: GlobalRefusedError, path: str) -> UnsafeMetadataError:
    shown = error.name[:_SHOWN_OF_NAME]
    if error.is_class and shown == error.name:
        what = (
            "which the metadata of torch's writers does not; nothing was executed. The file is"
            " damaged, a newer torch wrote it, or it was made to run code here. If your own writer"
            f" puts this class into it, allow it: allow_globals=({shown!r},) or"
            f" PARALOAD_ALLOW_GLOBALS={shown}"
        )
    elif error.is_new:
        what = (
            "which this version of torch does not have; nothing was executed. A newer torch wrote"
            " the file, or it is damaged"
        )
    else:
        what = (
            "which metadata never needs; nothing was executed. Do not trust this file: it is"
            " damaged, or it was made to run code here"
        )
    return UnsafeMetadataError(f"names {shown!r}, {what}", path, shown)
