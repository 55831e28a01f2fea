"""Checks that unpickled metadata has what every load needs, of the right types.

Nothing more: writers may add attributes (Megatron adds its save plans), and custom readers have
storage infos of their own. Each pass collects the types of several attributes: 50,000 entries do
not fit into a processor's cache, so fetching an object takes longer than checking it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from types import NoneType
from typing import Any, Final

import torch
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

_SEQUENCE: Final = (tuple, list)


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
        _require_types("storage_data", map(type, infos.values()), _StorageInfo, _HFStorageInfo)
        # read_metadata sets its load_id.
        storage_meta = getattr(metadata, "storage_meta", None)
        _require_types("storage_meta", [type(storage_meta)], StorageMeta, NoneType)
    _require_valid_tensors(
        [entry for entry in entries.values() if isinstance(entry, TensorStorageMetadata)]
    )
    _require_valid_places([info for info in infos.values() if isinstance(info, _StorageInfo)])


def _require_valid_tensors(tensors: list[TensorStorageMetadata]) -> None:
    of_tensors = {(type(tensor.properties.dtype), type(tensor.size)) for tensor in tensors}
    _require_columns(of_tensors, dtype=(torch.dtype,), size=_SEQUENCE)
    chunks = [chunk for tensor in tensors for chunk in tensor.chunks]
    of_chunks = {(type(chunk.offsets), type(chunk.sizes)) for chunk in chunks}
    _require_columns(of_chunks, offsets=_SEQUENCE, sizes=_SEQUENCE)
    if {*chain(*of_tensors, *of_chunks)} <= {torch.dtype, torch.Size}:
        return  # a torch.Size holds nothing but integers
    shapes: dict[str, Iterable[Any]] = {
        "size": (tensor.size for tensor in tensors),
        "offsets": (chunk.offsets for chunk in chunks),
        "sizes": (chunk.sizes for chunk in chunks),
    }
    for where, found in shapes.items():
        _require_types(where, map(type, chain.from_iterable(found)), int)


def _require_valid_places(places: list[_StorageInfo]) -> None:
    of_places = {
        (type(it.relative_path), type(it.offset), type(it.length), type(it.transform_descriptors))
        for it in places
    }
    _require_columns(
        of_places,
        relative_path=(str,),
        offset=(int,),
        length=(int,),
        transform_descriptors=(*_SEQUENCE, NoneType),
    )
    names = chain.from_iterable(place.transform_descriptors or () for place in places)
    _require_types("transform_descriptors", map(type, names), str)


def _require_columns(rows: Collection[tuple[type, ...]], **allowed: tuple[type, ...]) -> None:
    for (where, kinds), column in zip(allowed.items(), zip(*rows, strict=True), strict=bool(rows)):
        _require_types(where, column, *kinds)


def _require_types(where: str, found: Iterable[type], *allowed: type) -> None:
    for kind in set(found):
        if not issubclass(kind, allowed):
            raise _FaultError(f"has an object of type {kind.__name__} in {where}")
