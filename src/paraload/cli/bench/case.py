"""The load that ``paraload bench`` measures.

.metadata --> pieces --some of each file--> chosen --> targets, plan --> reader.read_data
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from paraload.cli._planner import QUANTISED, BytesPlanner, empty_state
from paraload.core.checksum import crc32
from paraload.errors import CheckpointReadError
from paraload.metadata.dcp_index import index_of
from paraload.report import ReadReport

#: Hardly a value of any checkpoint, so that bytes that a reader leaves out show.
_POISON: Final = 0xA5


class Piece(NamedTuple):
    """A saved piece of a tensor, as a tensor of its own, or an object; and the bytes of it."""

    key: MetadataIndex
    entry: Any
    info: Any
    nbytes: int


def pieces_of(metadata: Metadata) -> list[Piece]:
    """Everything in the checkpoint, in the order in which a job plans to load it.

    To load the pieces is what a job does that is sharded like the one that saved them.
    """
    pieces = []
    entries: dict[str, Any] = metadata.state_dict_metadata
    for name, item in entries.items():
        chunks = item.chunks if isinstance(item, TensorStorageMetadata) else [None]
        for chunk in chunks:
            key = MetadataIndex(name, None if chunk is None else chunk.offsets)
            if (info := metadata.storage_data.get(key)) is None:
                raise CheckpointReadError(f"{name!r}: the metadata names no file for it")
            entry, nbytes = item, info.length
            if chunk is not None:
                part = f" from {tuple(chunk.offsets)} on" if len(chunks) > 1 else ""
                start = torch.Size([0] * len(chunk.sizes))
                key = MetadataIndex(name + part, start)
                whole = ChunkStorageMetadata(start, chunk.sizes)
                entry = TensorStorageMetadata(item.properties, chunk.sizes, [whole])
                nbytes = math.prod(chunk.sizes) * item.properties.dtype.itemsize
            pieces.append(Piece(key, entry, info, nbytes))
    return pieces


def chosen(pieces: Sequence[Piece], limit_bytes: int) -> list[Piece]:
    """The first pieces of every file, at least one and about ``limit_bytes``, in their old order.

    Files are taken from in turn, so that the part is spread over files as the whole is.
    """
    by_file: dict[str, deque[int]] = {}
    for number in sorted(range(len(pieces)), key=lambda number: pieces[number].info.offset):
        by_file.setdefault(pieces[number].info.relative_path, deque()).append(number)
    queues = deque(by_file[path] for path in sorted(by_file))
    taken: list[int] = []
    left = limit_bytes
    while queues:
        queue = queues.popleft()
        number = queue.popleft()
        if pieces[number].nbytes > left and taken:
            continue  # this file gives no more
        taken.append(number)
        left -= pieces[number].nbytes
        if queue:
            queues.append(queue)
    return [pieces[number] for number in sorted(taken)]


class Case:
    """Pieces of a checkpoint, and a target for each tensor among them."""

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        self.folder = folder
        self.nbytes = sum(piece.nbytes for piece in pieces)
        self.files = sorted({folder / piece.info.relative_path for piece in pieces})
        entries = {piece.key.fqn: piece.entry for piece in pieces}
        self._metadata = Metadata(entries, storage_data={it.key: it.info for it in pieces})
        self._state = empty_state(index_of(self._metadata))
        self.targets: dict[str, torch.Tensor] = {
            name: self._state[name]
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype not in QUANTISED
        }
        self.poison()  # gives them their pages too: the first reader is not charged for these

    def prepare(self, reader: Any) -> Callable[[], ReadReport | None]:
        """Do all that ``dcp.load`` does before ``read_data``, and return the rest."""
        planner = BytesPlanner()
        planner.set_up_planner(dict(self._state), self._metadata, is_coordinator=True)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
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
