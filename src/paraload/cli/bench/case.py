"""The load that ``paraload bench`` measures.

CheckpointIndex --> pieces --some of each file--> chosen --> targets, plan --> reader.read_data
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from paraload.cli._planner import QUANTISED, empty_state, planned
from paraload.core.checksum import crc32
from paraload.core.compat import StorageInfo
from paraload.errors import CheckpointReadError
from paraload.metadata.dcp_index import index_of
from paraload.metadata.index import CheckpointIndex, Place
from paraload.metadata.safetensors_chunks import SafetensorsInfo
from paraload.report import ReadReport

#: An unlikely value in a checkpoint, so that bytes that a reader leaves out show.
_POISON: Final = 0xA5


class Piece(NamedTuple):
    """A saved piece of a tensor, which is loaded as a tensor of its own; or an object."""

    name: str
    place: Place
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    nbytes: int


def pieces_of(index: CheckpointIndex) -> list[Piece]:
    """Everything in the checkpoint, in the order in which a load would plan it.

    A job that is sharded like the one that saved the checkpoint loads the same pieces.
    """
    pieces = []
    for entry in index.entries:
        for _, dtype, offsets, lengths, place in entry.chunks:
            if place is None:
                if 0 in (lengths or ()):
                    continue  # writers may leave out chunks without elements
                raise CheckpointReadError(f"{entry.name!r}: the metadata names no file for it")
            if dtype is None or lengths is None:
                pieces.append(Piece(entry.name, place, None, (), place.end - place.start))
                continue
            name = entry.name + (f" from {offsets} on" if len(entry.chunks) > 1 else "")
            nbytes = math.prod(lengths) * entry.itemsize
            pieces.append(Piece(name, place, getattr(torch, dtype), lengths, nbytes))
    return pieces


def chosen(pieces: Sequence[Piece], limit_bytes: int) -> list[Piece]:
    """The first pieces of every file: at least one, about ``limit_bytes``, in the order given.

    Files take turns, so that the part is spread over files as the whole is. A file whose next piece
    does not fit gives no more.
    """
    turns: Counter[str] = Counter()
    in_turn = []
    for number in sorted(range(len(pieces)), key=lambda number: pieces[number].place.start):
        path = pieces[number].place.path
        in_turn.append((turns[path], path, number))
        turns[path] += 1
    taken: list[int] = []
    full = set()
    left = limit_bytes
    for _, path, number in sorted(in_turn):
        nbytes = pieces[number].nbytes
        if path in full or (nbytes > left and taken):
            full.add(path)
        else:
            taken.append(number)
            left -= nbytes
    return [pieces[number] for number in sorted(taken)]


class Case:
    """Pieces of a checkpoint, and a target for each tensor among them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.nbytes = sum(piece.nbytes for piece in pieces)
        self.files = sorted({piece.place.path for piece in pieces})
        self._metadata = _metadata_of(pieces)
        self._state = empty_state(index_of(self._metadata))
        self.targets: dict[str, torch.Tensor] = {
            piece.name: self._state[piece.name]
            for piece in pieces
            if piece.dtype is not None and piece.dtype not in QUANTISED
        }
        self.poison()  # also allocates their pages, so the first reader does not pay for these

    def prepare(self, reader: Any) -> Callable[[], ReadReport | None]:
        """Do everything that ``dcp.load`` does before ``read_data``, and return the rest."""
        plan, planner = planned(reader, dict(self._state), self._metadata)

        def read() -> Any:
            reader.read_data(plan, planner).wait()
            return getattr(reader, "last_report", None)  # torch's reader makes none

        return read

    def poison(self) -> None:
        """Overwrite the targets, so that no reader inherits what an earlier one loaded."""
        for target in self.targets.values():
            _raw_bytes(target).fill_(_POISON)

    def checksums(self) -> dict[str, int]:
        """CRC-32 of the content of each target."""
        return {name: crc32(_raw_bytes(it).numpy().data) for name, it in self.targets.items()}


def _metadata_of(pieces: Sequence[Piece]) -> Metadata:
    entries: dict[str, Any] = {}
    storage: dict[MetadataIndex, StorageInfo | SafetensorsInfo] = {}
    for name, (path, start, end, descriptors, layout), dtype, shape, _ in pieces:
        if dtype is None:
            offset, entries[name] = None, BytesStorageMetadata()
        else:
            offset, size = torch.Size([0] * len(shape)), torch.Size(shape)
            chunks = [ChunkStorageMetadata(offset, size)]
            entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
        info: Any = StorageInfo(path, start, end - start)
        if layout is not None:
            info = SafetensorsInfo(path, start, end - start, layout)
        if descriptors:
            info.transform_descriptors = descriptors  # no argument in torch 2.6
        storage[MetadataIndex(name, offset)] = info
    return Metadata(entries, storage_data=storage)


def _raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a flat one that shares its memory."""
    return tensor.view(-1).view(torch.uint8)
