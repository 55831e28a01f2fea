"""What is wrong with metadata that is not as torch's own writer makes it, if anything is.

Writers may put more into it (Megatron its save plans), readers of others have storage infos of
their own; so only what every load needs is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["fault_of"]


class _FaultError(Exception):
    """Says what is wrong."""


def fault_of(metadata: Any, *, is_torchs: bool) -> str | None:
    """What is wrong, in a few words; ``None`` if nothing is.

    Args:
        metadata: whatever a pickle had in it.
        is_torchs: it can only hold objects of torch's own classes.
    """
    try:
        _look_at(metadata, is_torchs=is_torchs)
    except _FaultError as fault:
        return str(fault)
    except (AttributeError, TypeError) as error:
        return f"holds a broken entry ({error})"
    return None


def _look_at(metadata: Any, *, is_torchs: bool) -> None:
    entries = getattr(metadata, "state_dict_metadata", None)
    storage = getattr(metadata, "storage_data", None)
    if not isinstance(entries, Mapping) or not isinstance(storage, Mapping | None):
        raise _FaultError(
            f"holds an object of type {type(metadata).__name__}, not the metadata of a checkpoint"
        )
    infos = {} if storage is None else storage
    if is_torchs:
        _require("state_dict_metadata", entries, str)
        _require(
            "state_dict_metadata", entries.values(), TensorStorageMetadata, BytesStorageMetadata
        )
        _require("storage_data", infos, MetadataIndex)
        _require("storage_data", infos.values(), _StorageInfo, _HFStorageInfo)
        # The load's own name will be written into it.
        _require("storage_meta", [getattr(metadata, "storage_meta", None)], StorageMeta, NoneType)
    tensors = [entry for entry in entries.values() if isinstance(entry, TensorStorageMetadata)]
    _require("size", map(attrgetter("size"), tensors), tuple, list)
    _require("dtype", map(attrgetter("properties.dtype"), tensors), torch.dtype)
    chunks = list(chain.from_iterable(map(attrgetter("chunks"), tensors)))
    for name in ("offsets", "sizes"):
        _require(name, map(attrgetter(name), chunks), tuple, list)
        _require(name, chain.from_iterable(map(attrgetter(name), chunks)), int)
    _require("size", chain.from_iterable(map(attrgetter("size"), tensors)), int)
    places = [info for info in infos.values() if isinstance(info, _StorageInfo)]
    for name, kind in (("relative_path", str), ("offset", int), ("length", int)):
        _require(name, map(attrgetter(name), places), kind)
    # Older writers did not have them.
    descriptors = [getattr(info, "transform_descriptors", None) or () for info in places]
    _require("transform_descriptors", descriptors, tuple, list)
    _require("transform_descriptors", chain.from_iterable(descriptors), str)


def _require(where: str, values: Iterable[Any], *kinds: type) -> None:
    for kind in set(map(type, values)):
        if not issubclass(kind, kinds):
            raise _FaultError(f"has an object of type {kind.__name__} in {where}")
