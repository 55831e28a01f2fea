"""DCP metadata of tensors whose places and layouts are known from safetensors headers."""

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from paraload._text import counted
from paraload.core.records import TensorRecord
from paraload.errors import FormatError
from paraload.formats.safetensors import Header, StoredTensor, strict_json

#: In ``__metadata__`` of DCP's sharded files: JSON of ``{name: {"saved_offsets": [...]}}``.
_SHARDING: Final = "DCP_SHARDING_INFO"
_SAVE_AGAIN: Final = "The file is damaged; save it again"
_MOST_OFFSET: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class SafetensorsInfo:
    """Where a tensor is stored; ``layout`` is relative to ``offset``."""

    relative_path: str
    offset: int
    length: int
    layout: TensorRecord


class SafetensorsFile(NamedTuple):
    path: str
    header: Header


def metadata_of(files: Iterable[SafetensorsFile], weight_map: Mapping[str, str]) -> Metadata:
    entries: dict[str, Any] = {}
    storage: dict[Any, SafetensorsInfo] = {}
    for file in files:
        offsets_of = saved_offsets(file)
        for tensor in file.header.tensors:
            if weight_map.get(tensor.name, file.path) != file.path:
                continue  # a copy that the index does not use
            shape = torch.Size(tensor.layout.shape)
            offsets = offsets_of(tensor)
            key = MetadataIndex(tensor.name, offsets)
            if key in storage:
                raise _stored_twice(tensor.name, file.path, storage[key].relative_path)
            storage[key] = SafetensorsInfo(
                file.path, tensor.start, tensor.end - tensor.start, tensor.layout
            )
            chunk = ChunkStorageMetadata(offsets, shape)
            dtype = _dtype_of(tensor, file.path)
            entry = entries.get(tensor.name)
            if entry is None:
                size = torch.Size(map(sum, zip(offsets, shape, strict=True)))
                properties = TensorProperties(dtype=dtype)
                entries[tensor.name] = TensorStorageMetadata(properties, size, [chunk])
                continue
            _require_alike(tensor, dtype, entry, file.path)
            entry.chunks.append(chunk)
            ends = map(sum, zip(offsets, shape, strict=True))
            entry.size = torch.Size(map(max, zip(entry.size, ends, strict=True)))
    return Metadata(entries, storage_data=storage)


def saved_offsets(file: SafetensorsFile) -> Callable[[StoredTensor], torch.Size]:
    """Where each tensor of the file lies in the one that it is a chunk of."""
    text = file.header.metadata.get(_SHARDING)
    if not text:
        return lambda tensor: torch.Size([0] * len(tensor.layout.shape))
    try:
        infos = strict_json(text.encode())
    except ValueError as error:
        raise FormatError(
            f"the header's {_SHARDING} is not valid: {error}",
            path=file.path,
            hint=_SAVE_AGAIN,
        ) from None

    def offsets(tensor: StoredTensor) -> torch.Size:
        info = infos.get(tensor.name)
        found = info.get("saved_offsets") if isinstance(info, dict) else None
        rank = len(tensor.layout.shape)
        if (
            not isinstance(found, list)
            or len(found) != rank
            or not all(type(offset) is int and 0 <= offset < _MOST_OFFSET for offset in found)
        ):
            raise FormatError(
                f"the header's {_SHARDING} does not say where this chunk belongs",
                fqn=tensor.name,
                path=file.path,
                expected=f"saved_offsets of {counted(rank, 'number')}",
                got=reprlib.repr(found),
                hint=_SAVE_AGAIN,
            )
        return torch.Size(found)

    return offsets


def _dtype_of(tensor: StoredTensor, path: str) -> torch.dtype:
    dtype: torch.dtype | None = getattr(torch, tensor.layout.dtype, None)
    if dtype is None:
        raise FormatError(
            "the installed torch does not have the dtype of this tensor",
            fqn=tensor.name,
            path=path,
            got=f"torch.{tensor.layout.dtype}",
            hint="Install a newer torch",
        )
    return dtype


def _require_alike(
    tensor: StoredTensor, dtype: torch.dtype, entry: TensorStorageMetadata, path: str
) -> None:
    """Chunks of one tensor have one dtype and the same number of dimensions."""
    if dtype != entry.properties.dtype or len(tensor.layout.shape) != len(entry.size):
        raise FormatError(
            "the files hold chunks of different tensors under this name",
            fqn=tensor.name,
            path=path,
            expected=f"{entry.properties.dtype} of {counted(len(entry.size), 'dimension')}",
            got=f"{dtype} of shape {tensor.layout.shape}",
            hint="Is this the right folder, and complete?",
        )


def _stored_twice(name: str, path: str, other: str) -> FormatError:
    return FormatError(
        f"{other!r} holds this tensor too",
        fqn=name,
        path=path,
        expected="each tensor in one file, or an index that says which file to use",
        hint="If the folder has two checkpoints, move one of them, or give the path of one file",
    )
