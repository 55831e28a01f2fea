"""Safetensors inside ``.distcp`` files, of a writer with ``SerializationFormat.SAFETENSORS``.

    [objects, each a torch.save archive][all tensors of the file, as one safetensors file]

torch's ``.metadata`` does not mark them, and its reader cannot load them: each tensor has the
offset of the whole safetensors file and the length of its own elements. That length gives them
away, because an archive of torch.save is longer; the headers then say where each tensor is.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from math import prod
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from paraload.core.safe_paths import unsafe_path
from paraload.errors import FormatError, ShortFileError
from paraload.metadata.dcp_index import StoredTensors, descriptors_of
from paraload.metadata.safetensors_chunks import SafetensorsFile, SafetensorsInfo, saved_offsets
from paraload.metadata.safetensors_headers import FileReader
from paraload.runtime.gc_pause import collector_paused
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import ByteSource


def holds_safetensors(metadata: Metadata) -> bool:
    """Whether tensors are stored as safetensors; a writer stores all of them in one way."""
    stored = StoredTensors(metadata.state_dict_metadata)
    for index, info in (metadata.storage_data or {}).items():
        dtype, shape = stored.of(index)
        if dtype is not None:
            nbytes = dtype.itemsize * prod(shape)
            return bool(getattr(info, "length", None) == nbytes and not descriptors_of(info))
    return False


@stopped_by_signals
def locate_safetensors(
    metadata: Metadata,
    make_source: Callable[[], ByteSource],
    *,
    path: str,
    retries: int | None,
    stall_timeout_s: float | None,
) -> None:
    """Replace the storage infos of all tensors by the places that the files' headers give.

    Nothing changes if no file has such a header.

    Raises:
        CheckpointReadError: headers are damaged, or do not fit the metadata.
        StalledReadError: the storage has not answered in time.
    """
    entries, storage = metadata.state_dict_metadata, metadata.storage_data
    by_file: defaultdict[str, list[MetadataIndex]] = defaultdict(list)
    for index, info in storage.items():
        if isinstance(entries.get(index.fqn), TensorStorageMetadata):
            by_file[info.relative_path].append(index)
    if any(map(unsafe_path, by_file)):
        return  # the load refuses them
    starts = {name: storage[indexes[0]].offset for name, indexes in by_file.items()}
    with (
        collector_paused(),
        closing(make_source()) as source,
        FileReader(
            source, path=path, retries=retries, stall_timeout_s=stall_timeout_s, starts=starts
        ) as reader,
    ):
        answers = reader.answers(list(by_file), reader.header)
        if all(isinstance(answer, FormatError | ShortFileError) for answer in answers):
            return  # in another format, which the reader may know
        headers = reader.whole(answers)
    for (name, indexes), header in zip(by_file.items(), headers, strict=True):
        found = _places(SafetensorsFile(name, header), starts[name])
        for index in indexes:
            if index not in found:
                raise FormatError(
                    "the file does not hold this part of the tensor",
                    fqn=index.fqn,
                    path=name,
                    expected=f"the part at offset {tuple(index.offset or ())}",
                    hint="torch writes only one part of a tensor into each safetensors file, and"
                    " drops the others: save again, with SerializationFormat.TORCH_SAVE",
                )
            storage[index] = found[index]


def _places(file: SafetensorsFile, start: int) -> dict[Any, SafetensorsInfo]:
    offsets_of = saved_offsets(file)
    return {
        MetadataIndex(it.name, offsets_of(it)): SafetensorsInfo(
            file.path, start + it.start, it.end - it.start, it.layout
        )
        for it in file.header.tensors
    }
