"""The load that ``paraload bench`` measures.

.metadata --> pieces --some of each file--> chosen --> targets, plan --> reader.read_data
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from paraload._checksum import crc32
from paraload.cli._planner import QUANTISED, BytesPlanner, empty_state
from paraload.errors import CheckpointReadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paraload.report import ReadReport

#: Hardly a value of any checkpoint, so that bytes that a reader leaves out show.
_POISON: Final = 0xA5


def pieces_of(metadata: Metadata) -> Metadata:
    """The same checkpoint with each saved piece of a tensor as a tensor of its own.

    Loading it is what a job does that is sharded like the one that saved it, and any part of it can
    be loaded alone.
    """
    infos = metadata.storage_data
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, Any] = {}
    for name, item in metadata.state_dict_metadata.items():
        if not isinstance(item, TensorStorageMetadata):
            entries[name] = item
            places[MetadataIndex(name)] = infos.get(MetadataIndex(name))
            continue
        for chunk in item.chunks:
            piece = name if len(item.chunks) == 1 else f"{name} from {tuple(chunk.offsets)} on"
            start = torch.Size([0] * len(chunk.sizes))
            whole = ChunkStorageMetadata(start, chunk.sizes)
            entries[piece] = TensorStorageMetadata(item.properties, chunk.sizes, [whole])
            places[MetadataIndex(piece, start)] = infos.get(MetadataIndex(name, chunk.offsets))
    if lost := [index.fqn for index, info in places.items() if info is None]:
        raise CheckpointReadError(f"{lost[0]!r}: the metadata names no file for it")
    return Metadata(state_dict_metadata=entries, storage_data=places)


def sizes_of(pieces: Metadata) -> dict[MetadataIndex, int]:
    """Bytes of each tensor, and those that an object takes in its file."""
    sizes = {}
    for index, info in pieces.storage_data.items():
        sizes[index] = info.length
        entry = pieces.state_dict_metadata[index.fqn]
        if isinstance(entry, TensorStorageMetadata):
            sizes[index] = entry.size.numel() * entry.properties.dtype.itemsize
    return sizes


def chosen(pieces: Metadata, limit_bytes: int) -> Metadata:
    """The first pieces of every file, at least one and about ``limit_bytes``, in their old order.

    Files are taken from in turn, so that the part is spread over files as the whole is.
    """
    by_file: dict[str, deque[MetadataIndex]] = {}
    for index, info in sorted(pieces.storage_data.items(), key=lambda it: it[1].offset):
        by_file.setdefault(info.relative_path, deque()).append(index)
    queues = deque(by_file[path] for path in sorted(by_file))
    sizes = sizes_of(pieces)
    taken: set[MetadataIndex] = set()
    left = limit_bytes
    while queues:
        queue = queues.popleft()
        index = queue.popleft()
        if sizes[index] > left and taken:
            continue  # this file gives no more
        taken.add(index)
        left -= sizes[index]
        if queue:
            queues.append(queue)
    places = {index: info for index, info in pieces.storage_data.items() if index in taken}
    entries = {index.fqn: pieces.state_dict_metadata[index.fqn] for index in places}
    return Metadata(state_dict_metadata=entries, storage_data=places)


class Case:
    """Pieces of a checkpoint, and a target for each tensor among them."""

    def __init__(self, folder: Path, pieces: Metadata) -> None:
        self.folder, self._pieces = folder, pieces
        self.nbytes = sum(sizes_of(pieces).values())
        self.files = sorted({folder / info.relative_path for info in pieces.storage_data.values()})
        self._state = empty_state(pieces)
        self.targets: dict[str, torch.Tensor] = {
            name: self._state[name]
            for name, entry in pieces.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype not in QUANTISED
        }
        self.poison()  # gives them their pages too: the first reader is not charged for these

    def prepare(self, reader: Any) -> Callable[[], ReadReport | None]:
        """Do all that ``dcp.load`` does before ``read_data``, and return the rest."""
        planner = BytesPlanner()
        planner.set_up_planner(dict(self._state), self._pieces, is_coordinator=True)
        reader.set_up_storage_reader(self._pieces, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
        plan = planner.finish_plan(plan)

        def read() -> Any:
            reader.read_data(plan, planner).wait()
            return getattr(reader, "last_report", None)  # torch's reader makes none

        return read

    def poison(self) -> None:
        """Overwrite the targets, so that no reader inherits what an earlier one loaded."""
        for target in self.targets.values():
            _raw_bytes(target).fill_(_POISON)

    def checksums(self) -> dict[str, int]:
        """CRC-32 of what each target holds now."""
        return {name: crc32(_raw_bytes(it).numpy().data) for name, it in self.targets.items()}


def _raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a flat one that shares its memory."""
    return tensor.view(-1).view(torch.uint8)
