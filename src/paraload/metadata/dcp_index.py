"""DCP's ``Metadata`` as plain values: all of it as an index, or the chunks of a plan."""

from collections.abc import Mapping
from typing import Any, Final

from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from paraload.core.records import dtype_name
from paraload.metadata.index import CheckpointIndex, Chunk, Entry, Place

UNKNOWN: Final = (None, None)


def index_of(metadata: Metadata) -> CheckpointIndex:
    """All entries and places of ``metadata``, whose storage infos have byte ranges."""
    infos = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}
    entries = [_entry(name, entry, infos) for name, entry in metadata.state_dict_metadata.items()]
    unclaimed = [
        Chunk(name, None, None if offset is None else tuple(offset), None, _place(info))
        for (name, offset), info in infos.items()
    ]
    return CheckpointIndex(entries=tuple(entries), unclaimed=tuple(unclaimed))


def _entry(name: str, entry: Any, infos: dict[tuple[str, Any], Any]) -> Entry:
    """The entry; its places are taken out of ``infos``."""
    if not isinstance(entry, TensorStorageMetadata):
        place = _place(infos.pop((name, None), None))
        return Entry(name, None, 0, None, (Chunk(name, None, None, None, place),))
    dtype = dtype_name(entry.properties.dtype)
    chunks = []
    for chunk in entry.chunks:
        offsets, lengths = tuple(chunk.offsets), tuple(chunk.sizes)
        info = infos.pop((name, offsets), None)
        if info is None and not any(offsets):
            info = infos.pop((name, None), None)  # some writers leave out the offset of 0
        chunks.append(Chunk(name, dtype, offsets, lengths, _place(info)))
    return Entry(name, dtype, entry.properties.dtype.itemsize, tuple(entry.size), tuple(chunks))


def _place(info: Any) -> Place | None:
    if info is None:
        return None
    end = info.offset + info.length
    layout = getattr(info, "layout", None)
    return Place(info.relative_path, info.offset, end, descriptors_of(info), layout)


def descriptors_of(info: Any) -> tuple[str, ...]:
    """The transforms of a record; older writers do not list them."""
    return tuple(getattr(info, "transform_descriptors", None) or ())


class StoredTensors:
    """Describes single chunks, at 0.5 us each; an index would take 3 us."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self._by_offset: dict[str, dict[Any, Any]] = {}

    def of(self, index: MetadataIndex) -> tuple[Any, Any]:
        """The dtype and shape of the chunk, of torch's types; ``UNKNOWN`` if not described."""
        entry = self._entries.get(index.fqn)
        chunks = getattr(entry, "chunks", None)
        if not chunks:
            return UNKNOWN
        hint = index.index
        chunk = chunks[hint if hint is not None and 0 <= hint < len(chunks) else 0]
        if chunk.offsets != index.offset and index.offset is not None:
            by_offset = self._by_offset.get(index.fqn)
            if by_offset is None:
                by_offset = self._by_offset[index.fqn] = {c.offsets: c for c in chunks}
            chunk = by_offset.get(index.offset)
            if chunk is None:
                return UNKNOWN
        return entry.properties.dtype, chunk.sizes  # type: ignore[union-attr]
