"""An open safetensors file, as subclasses of torch's reader expect it, read by the engine.

items --batches--> one load for each batch --> tensors, kept until they are asked for
any other slice                            --> a load of its own
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload.adapters.dcp.read_data import read_with
from paraload.adapters.dcp.readers import ParallelFileReader

#: Read ahead in one load. A load takes 3 ms, so 1,000 small tensors one by one would take 3 s. More
#: would cost memory without being faster.
_BATCH_BYTES: Final = 64 << 20


class _Part(NamedTuple):
    """A part of a stored tensor."""

    stored: MetadataIndex
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


class OpenFile:
    """What ``_process_read_request`` uses of ``safetensors.safe_open``."""

    def __init__(self, reader: Any, path: str) -> None:
        self._reader = reader
        self._indexes = {
            index.fqn: index
            for index, info in reader.storage_data.items()
            if info.relative_path == path
        }
        self._there: dict[_Part, torch.Tensor] = {}

    def keys(self) -> list[str]:
        return list(self._indexes)

    def get_slice(self, name: str) -> "_Slice":
        return _Slice(self, self._indexes[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.get_slice(name)[...]

    def ahead(self, items: Sequence[ReadItem]) -> Iterator[ReadItem]:
        """Yield ``items``, each after the slice that it most likely needs has been read."""
        for batch in self._batches(items):
            parts = [
                _Part(item.storage_index, tuple(item.storage_offsets), tuple(item.lengths))
                for item in batch
            ]
            parts = list(filter(self._is_inside, parts))
            self._there = dict(zip(parts, self._read_all(parts), strict=True))
            yield from batch
        self._there = {}

    def _batches(self, items: Sequence[ReadItem]) -> Iterator[list[ReadItem]]:
        batch: list[ReadItem] = []
        budget_bytes = self._reader.options.memory_budget_bytes
        most = room = min(_BATCH_BYTES, budget_bytes // 2 if budget_bytes else _BATCH_BYTES)
        for item in items:
            nbytes = item.lengths.numel() * self.layout_of(item.storage_index).itemsize
            if batch and nbytes > room:
                yield batch
                batch, room = [], most
            batch.append(item)
            room -= nbytes
        if batch:
            yield batch

    def layout_of(self, index: MetadataIndex) -> Any:
        return self._reader.storage_data[index].layout

    def read(self, part: _Part) -> torch.Tensor:
        there = self._there.pop(part, None)
        return there if there is not None else self._read_all([part])[0]

    def _is_inside(self, part: _Part) -> bool:
        """Whether the part fits the stored tensor; the transformed one may have another shape."""
        shape = self.layout_of(part.stored).shape
        return len(shape) == len(part.lengths) and all(
            offset + length <= size
            for offset, length, size in zip(part.offsets, part.lengths, shape, strict=True)
        )

    def _read_all(self, parts: Sequence[_Part]) -> list[torch.Tensor]:
        targets = []
        items = []
        for number, (index, offsets, lengths) in enumerate(parts):
            dtype = getattr(torch, self.layout_of(index).dtype)
            targets.append(torch.empty(lengths, dtype=dtype))
            origin = torch.Size([0] * len(lengths))
            place = MetadataIndex(str(number), origin)
            sizes = torch.Size(offsets), torch.Size(lengths)
            items.append(ReadItem(LoadItemType.TENSOR, place, origin, index, *sizes))
        planner = DefaultLoadPlanner()
        planner.state_dict = {str(number): target for number, target in enumerate(targets)}
        if items:
            plan = LoadPlan(items)
            read_with(self._reader, plan, planner, defaults=ParallelFileReader, progress=False)
        return targets


class _Slice:
    """A stored tensor, of which a part is read when it is indexed."""

    def __init__(self, file: OpenFile, index: MetadataIndex) -> None:
        self._file = file
        self._index = index
        self._shape = file.layout_of(index).shape

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def __getitem__(self, key: Any) -> torch.Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        is_plain = all(isinstance(part, slice) and part.step in {None, 1} for part in parts)
        whole = (slice(None),) * len(self._shape)
        if not is_plain or len(parts) > len(whole):
            return self._read(whole)[key]
        return self._read(parts + whole[len(parts) :])

    def _read(self, parts: tuple[slice, ...]) -> torch.Tensor:
        bounds = [part.indices(size) for part, size in zip(parts, self._shape, strict=True)]
        offsets = tuple(start for start, _, _ in bounds)
        lengths = tuple(max(0, stop - start) for start, stop, _ in bounds)
        return self._file.read(_Part(self._index, offsets, lengths))
