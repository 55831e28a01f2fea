"""Checks that unpickled metadata has what every load needs, of the right types.

Nothing more: writers may add attributes (Megatron adds its save plans), and custom readers have
storage infos of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)


class _FaultError(Exception):
    pass


def metadata_fault(metadata: Any, *, is_torchs: bool) -> str | None:
    """What is wrong, in a few words; ``None`` if the metadata is valid.

    Args:
        metadata: any unpickled object.
        is_torchs: the unpickler allowed torch's own classes only.
    """
    try:
        _require_valid(metadata, is_torchs=is_torchs)
    except _FaultError as fault:
        return str(fault)
    except (AttributeError, TypeError) as error:
        return f"holds a broken entry ({error})"
    return None


def _require_valid(metadata: Any, *, is_torchs: bool) -> None:
    entries = getattr(metadata, "state_dict_metadata", None)
    storage = getattr(metadata, "storage_data", None)
    if not isinstance(entries, Mapping) or not isinstance(storage, Mapping | None):
        raise _FaultError(
            f"holds an object of type {type(metadata).__name__}, not the metadata of a checkpoint"
        )
    infos = {} if storage is None else storage
    if is_torchs:
        _require_types("state_dict_metadata", entries, str)
        _require_types(
            "state_dict_metadata", entries.values(), TensorStorageMetadata, BytesStorageMetadata
        )
        _require_types("storage_data", infos, MetadataIndex)
        _require_types("storage_data", infos.values(), _StorageInfo, _HFStorageInfo)
        # read_metadata sets its load_id.
        storage_meta = getattr(metadata, "storage_meta", None)
        _require_types("storage_meta", [storage_meta], StorageMeta, NoneType)
    _require_valid_tensors(
        entry for entry in entries.values() if isinstance(entry, TensorStorageMetadata)
    )
    _require_valid_places([info for info in infos.values() if isinstance(info, _StorageInfo)])


def _require_valid_tensors(tensors: Iterable[TensorStorageMetadata]) -> None:
    # One pass: cache misses take most of the time. Values by identity, since the unpickler shares
    # equal dtypes and shapes, so few are left to check.
    dtypes: dict[int, Any] = {}
    sizes: dict[int, Any] = {}
    chunk_offsets: dict[int, Any] = {}
    chunk_sizes: dict[int, Any] = {}
    for tensor in tensors:
        dtype, size = tensor.properties.dtype, tensor.size
        dtypes[id(dtype)] = dtype
        sizes[id(size)] = size
        for chunk in tensor.chunks:
            chunk_offsets[id(chunk.offsets)] = chunk.offsets
            chunk_sizes[id(chunk.sizes)] = chunk.sizes
    _require_types("dtype", dtypes.values(), torch.dtype)
    for name, shapes in (("size", sizes), ("offsets", chunk_offsets), ("sizes", chunk_sizes)):
        _require_types(name, shapes.values(), tuple, list)
        _require_types(name, chain.from_iterable(shapes.values()), int)


def _require_valid_places(places: list[_StorageInfo]) -> None:
    _require_types("relative_path", (place.relative_path for place in places), str)
    _require_types("offset", (place.offset for place in places), int)
    _require_types("length", (place.length for place in places), int)
    # Old writers did not set the attribute.
    found = (getattr(place, "transform_descriptors", None) for place in places)
    descriptors = [each for each in found if each]
    _require_types("transform_descriptors", descriptors, tuple, list)
    _require_types("transform_descriptors", chain.from_iterable(descriptors), str)


def _require_types(where: str, values: Iterable[Any], *kinds: type) -> None:
    for kind in set(map(type, values)):
        if not issubclass(kind, kinds):
            raise _FaultError(f"has an object of type {kind.__name__} in {where}")
