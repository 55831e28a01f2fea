"""Checks that unpickled metadata has what every load needs, of the right types.

It checks nothing more: writers may add attributes (Megatron adds its save plans), and custom
readers have storage infos of their own. One pass over the entries collects the types of all
attributes, since 50,000 entries exceed a processor's cache, and fetching one takes longer than
checking it.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

from paraload.core.compat import HFStorageInfo, StorageInfo


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
    infos = getattr(metadata, "storage_data", None)
    if not isinstance(entries, Mapping) or not isinstance(infos, Mapping | None):
        raise _FaultError(
            f"holds an object of type {type(metadata).__name__}, not the metadata of a checkpoint"
        )
    infos = {} if infos is None else infos
    if is_torchs:
        tensor_or_object = (TensorStorageMetadata, BytesStorageMetadata)
        _require_types("state_dict_metadata", map(type, entries), str)
        _require_types("state_dict_metadata", map(type, entries.values()), *tensor_or_object)
        _require_types("storage_data", map(type, infos), MetadataIndex)
        _require_types("storage_data", map(type, infos.values()), StorageInfo, HFStorageInfo)
        # read_metadata sets its load_id.
        storage_meta = getattr(metadata, "storage_meta", None)
        _require_types("storage_meta", [type(storage_meta)], StorageMeta, NoneType)
    _require_valid_tensors(entries.values())
    _require_valid_places(infos.values())


def _require_valid_tensors(entries: Collection[Any]) -> None:
    dtypes, sizes, chunk_offsets, chunk_sizes = (set[type]() for _ in range(4))
    for tensor in entries:
        if not isinstance(tensor, TensorStorageMetadata):
            continue
        dtypes.add(type(tensor.properties.dtype))
        sizes.add(type(tensor.size))
        for chunk in tensor.chunks:
            chunk_offsets.add(type(chunk.offsets))
            chunk_sizes.add(type(chunk.sizes))
    _require_types("dtype", dtypes, torch.dtype)
    _require_types("size", sizes, tuple, list)
    _require_types("offsets", chunk_offsets, tuple, list)
    _require_types("sizes", chunk_sizes, tuple, list)
    if sizes | chunk_offsets | chunk_sizes <= {torch.Size}:
        return  # a torch.Size holds only integers
    for tensor in entries:
        if isinstance(tensor, TensorStorageMetadata):
            _require_types("size", map(type, tensor.size), int)
            for chunk in tensor.chunks:
                _require_types("offsets", map(type, chunk.offsets), int)
                _require_types("sizes", map(type, chunk.sizes), int)


def _require_valid_places(infos: Iterable[Any]) -> None:
    paths, offsets, lengths = (set[type]() for _ in range(3))
    descriptors = []
    for info in infos:
        if isinstance(info, StorageInfo):
            paths.add(type(info.relative_path))
            offsets.add(type(info.offset))
            lengths.add(type(info.length))
            # torch 2.6 lacks the attribute, but newer versions write it.
            if described := getattr(info, "transform_descriptors", None):
                descriptors.append(described)
    _require_types("relative_path", paths, str)
    _require_types("offset", offsets, int)
    _require_types("length", lengths, int)
    _require_types("transform_descriptors", map(type, descriptors), tuple, list)
    _require_types("transform_descriptors", map(type, chain.from_iterable(descriptors)), str)


def _require_types(where: str, found: Iterable[type], *allowed: type) -> None:
    for kind in set(found):
        if not issubclass(kind, allowed):
            raise _FaultError(f"has an object of type {kind.__name__} in {where}")
