"""What is benchmarked: records of a checkpoint, a tensor for each, the plan that reads them.

    .metadata --> records --some of each file--> chosen --> targets, plan --> reader.read_data

Every saved piece goes to its own tensor, as in a job that is sharded like the one that saved it.
All contestants fill the same tensors.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload._checksum import crc32
from paraload.cli._page_cache import FileRange
from paraload.cli._planner import QUANTISED, BytesPlanner
from paraload.errors import CheckpointReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch.distributed.checkpoint import Metadata

__all__ = ["Case", "Record", "bytes_of", "chosen", "records_of"]

#: Hardly a value of any checkpoint, so that what an arm leaves unread shows.
_POISON: Final = 0xA5
_NOWHERE: Final = torch.Size((0,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A saved piece of a tensor, or an object: bytes ``[start, end)`` of ``path``.

    Attributes:
        index: its key in the metadata.
        shape: of the piece; ``None`` for an object, and for a tensor that has no target.
        dtype: ``None`` likewise.
    """

    index: Any
    path: str
    start: int
    end: int
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """Bytes that a job gets from it."""
        if self.shape is None or self.dtype is None:
            return self.end - self.start
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One load; the name of a target is the number of its record."""

    folder: Path
    metadata: Metadata
    records: Sequence[Record]
    targets: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, folder: Path, metadata: Metadata, records: Sequence[Record]) -> Case:
        """Make the targets and fault their memory in."""
        targets = {
            str(number): torch.empty(record.shape, dtype=record.dtype)
            for number, record in enumerate(records)
            if record.shape is not None
        }
        case = cls(folder=folder, metadata=metadata, records=records, targets=targets)
        case.poison()
        return case

    @property
    def ranges(self) -> list[FileRange]:
        """The part of each file that is read."""
        ends: dict[str, tuple[int, int]] = {}
        for record in self.records:
            start, end = ends.get(record.path, (record.start, record.end))
            ends[record.path] = min(start, record.start), max(end, record.end)
        return [FileRange(self.folder / path, *span) for path, span in sorted(ends.items())]

    def prepare(self, reader: Any) -> Callable[[], object]:
        """Do all that ``dcp.load`` does before ``read_data``, and return the rest."""
        planner = BytesPlanner()
        planner.set_up_planner(dict(self.targets), self.metadata, is_coordinator=True)
        reader.set_up_storage_reader(self.metadata, is_coordinator=True)
        items = [_read_item(number, record) for number, record in enumerate(self.records)]
        (plan,) = reader.prepare_global_plan([reader.prepare_local_plan(LoadPlan(items))])
        return lambda: reader.read_data(plan, planner).wait()

    def memory(self, number: int) -> memoryview | None:
        """The bytes of a record's target, if it has one."""
        target = self.targets.get(str(number))
        return None if target is None else _raw_bytes(target).numpy().data

    def poison(self) -> None:
        """Overwrite the targets, so that an arm cannot inherit what an earlier one loaded."""
        for target in self.targets.values():
            _raw_bytes(target).fill_(_POISON)

    def checksums(self) -> list[int]:
        """Of what the targets hold now, by number of the record; 0 without target."""
        memories = map(self.memory, range(len(self.records)))
        return [0 if memory is None else crc32(memory) for memory in memories]


def records_of(metadata: Metadata) -> list[Record]:
    """Everything in the checkpoint, in the order in which a job plans to load it.

    Raises:
        CheckpointReadError: the metadata names no file for an entry.
    """
    infos: dict[Any, Any] = metadata.storage_data
    records = []
    for name, item in metadata.state_dict_metadata.items():
        if isinstance(item, TensorStorageMetadata):
            # No target can be made for a quantised tensor.
            dtype = None if item.properties.dtype in QUANTISED else item.properties.dtype
            pieces = [
                (MetadataIndex(name, chunk.offsets), None if dtype is None else tuple(chunk.sizes))
                for chunk in item.chunks
            ]
        else:
            dtype, pieces = None, [(MetadataIndex(name), None)]
        for index, shape in pieces:
            if (info := infos.get(index)) is None:
                raise CheckpointReadError(f"{name!r}: the metadata names no file for it")
            start, end = info.offset, info.offset + info.length
            path = info.relative_path
            records.append(
                Record(index=index, path=path, start=start, end=end, shape=shape, dtype=dtype)
            )
    return records


def chosen(records: Sequence[Record], limit_bytes: int) -> list[Record]:
    """The first records of every file, at least one and about ``limit_bytes``, in their old order.

    Files are taken from in turn, so that the part is spread over files as the whole is.
    """
    by_file: dict[str, deque[int]] = {}
    for number in sorted(range(len(records)), key=lambda number: records[number].start):
        by_file.setdefault(records[number].path, deque()).append(number)
    taken: list[int] = []
    left = limit_bytes
    queues = [by_file[path] for path in sorted(by_file)]
    while queues:
        more = []
        for queue in queues:
            number = queue.popleft()
            if records[number].nbytes > left and taken:
                continue  # this file gives no more
            taken.append(number)
            left -= records[number].nbytes
            if queue:
                more.append(queue)
        queues = more
    return [records[number] for number in sorted(taken)]


def bytes_of(records: Sequence[Record]) -> int:
    """Bytes that a job gets from all of them."""
    return sum(record.nbytes for record in records)


def _read_item(number: int, record: Record) -> ReadItem:
    zeros = _NOWHERE if record.shape is None else torch.Size([0] * len(record.shape))
    return ReadItem(
        type=LoadItemType.BYTE_IO if record.shape is None else LoadItemType.TENSOR,
        dest_index=MetadataIndex(str(number)),
        dest_offsets=zeros,
        storage_index=record.index,
        storage_offsets=zeros,
        lengths=_NOWHERE if record.shape is None else torch.Size(record.shape),
    )


def _raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a flat one that shares its memory."""
    return tensor.view(-1).view(torch.uint8)
