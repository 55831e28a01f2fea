"""The hooks of :class:`~paraload.ReadOptions`, and what they receive about an item.

Hooks run on reader threads or in worker processes. Worker processes receive them by pickle, so a
hook should be a function at the top level of a module.
"""

from collections.abc import Callable
from typing import IO, Any, NamedTuple

__all__ = ["ItemIndex", "NarrowTensor", "ReadItemInfo", "SliceFile", "StorageItem", "Transform"]


class ItemIndex(NamedTuple):
    """Name and place of a tensor chunk: torch's ``MetadataIndex`` without torch.

    Attributes:
        fqn: fully qualified name of the tensor or object.
        offset: of the chunk within the tensor, in elements; ``None`` for objects.
        index: position of the chunk in the metadata, if it is known.
    """

    fqn: str
    offset: tuple[int, ...] | None = None
    index: int | None = None  # type: ignore[assignment]  # hides tuple.index, as MetadataIndex does


class ReadItemInfo(NamedTuple):
    """What to read and where it goes: torch's ``ReadItem`` without torch.

    Attributes:
        type: ``"TENSOR"`` or ``"BYTE_IO"``.
        dest_index: the target.
        dest_offsets: where the slice goes in the target, in elements.
        storage_index: the stored chunk.
        storage_offsets: where the slice starts in the stored chunk, in elements.
        lengths: shape of the slice.
    """

    type: str
    dest_index: ItemIndex
    dest_offsets: tuple[int, ...]
    storage_index: ItemIndex
    storage_offsets: tuple[int, ...]
    lengths: tuple[int, ...]


class StorageItem(NamedTuple):
    """Where an item is stored: bytes ``[offset, offset + length)`` of ``relative_path``.

    ``transform_descriptors`` names the transforms of its bytes, such as ``"stream.zstd/1"``.
    """

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


#: ``slice_file(stream, item_metadata)`` returns the item's bytes, from a stream of the whole file.
SliceFile = Callable[[IO[bytes], StorageItem], IO[bytes]]

#: ``narrow_tensor(tensor, storage_offsets, lengths)`` returns the slice of a stored tensor.
NarrowTensor = Callable[[Any, tuple[int, ...], tuple[int, ...]], Any]

#: ``transform(read_item, transform_descriptors, stream)`` returns a stream of decoded bytes. The
#: descriptors are those that paraload does not decode itself.
Transform = Callable[[ReadItemInfo, tuple[str, ...], IO[bytes]], IO[bytes]]
