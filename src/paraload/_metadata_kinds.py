"""What keys and values of a ``.metadata`` must be, and what many of them have in common.

    Made, as the pickle made it --all attributes, of exactly these types--> kind, which is hashable

Raises ``NotPlainError`` for anything else, which the general unpickler then reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint import filesystem, metadata

from paraload._plain_values import Made, require

if TYPE_CHECKING:
    from paraload._columns import PlaceKind, TensorKind

__all__ = ["StorageInfo", "attributes_of", "place_kind", "tensor_kind"]

#: The name that is in every file.
StorageInfo: Final = filesystem._StorageInfo  # noqa: SLF001 - torch has no other


def attributes_of(made: Any, kind: type) -> dict[str, Any]:
    """The attributes of an object, which is of this class.

    Raises:
        NotPlainError: it is not.
    """
    require(type(made) is Made and made.kind is kind and type(made.state) is dict)
    attributes: dict[str, Any] = made.state
    return attributes


def _values(made: Any, kind: type, *names: str) -> list[Any]:
    attributes = attributes_of(made, kind)
    require(attributes.keys() == set(names))
    return [attributes[name] for name in names]


def tensor_kind(entry: Any) -> TensorKind | None:
    if type(entry) is Made and entry.kind is metadata.BytesStorageMetadata:
        require(entry.state is None)
        return None
    properties, size, chunks = _values(
        entry, metadata.TensorStorageMetadata, "properties", "size", "chunks"
    )
    require(type(properties) is Made and properties.kind is metadata.TensorProperties)
    dtype, layout, requires_grad, memory_format, pin_memory = properties.state
    require(type(dtype) is torch.dtype and type(layout) is torch.layout)
    require(type(memory_format) is torch.memory_format)
    require(type(requires_grad) is type(pin_memory) is bool)
    require(type(properties.state) is tuple and type(size) is torch.Size and type(chunks) is list)
    spans = []
    for chunk in chunks:
        offsets, sizes = _values(chunk, metadata.ChunkStorageMetadata, "offsets", "sizes")
        require(type(offsets) is type(sizes) is torch.Size)
        spans.append((offsets, sizes))
    return properties.state, size, tuple(spans)


def place_kind(index: dict[str, Any], info: dict[str, Any]) -> PlaceKind:
    offset, hint, path = index.get("offset"), index.get("index"), info["relative_path"]
    require(type(offset) in {torch.Size, type(None)})
    require(type(hint) in {int, type(None)} and type(path) is str)
    descriptors = info.get("transform_descriptors")
    if descriptors is not None:
        require(type(descriptors) in {list, tuple} and set(map(type, descriptors)) <= {str})
        descriptors = tuple(descriptors)
    return offset, hint, path, descriptors
