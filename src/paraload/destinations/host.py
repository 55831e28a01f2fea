"""Destination: where bytes must land. The only module that touches tensor memory.

direct   a plain CPU tensor of the stored dtype: workers write into its own memory
staged   anything else (device, dtype, subclass, expanded): bytes are collected first, then
         torch copies them, with every conversion that ``Tensor.copy_`` knows

The destinations of a load are columns (``Destinations``), and an object is made of them only for
the item that is at hand: of a million small tensors, a million objects each of four kinds would
have to come back into the processor's cache, and did, for a third of the time that planning took.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paraload.core.checksum import crc32
from paraload.core.memory import Layout, TargetMemory
from paraload.core.records import dtype_name
from paraload.core.tasks import RecordSpec
from paraload.destinations.tensor_memory import (
    extent,
    has_shared_places,
    memory_at,
    memory_fault,
    note_writes,
    own_memory,
)
from paraload.errors import ShapeMismatchError, TargetMemoryError
from paraload.formats import torch_load
from paraload.formats.record_checks import check_stored
from paraload.geometry import runs as geometry


class Destination(NamedTuple):
    """A target tensor, and its memory if workers may write to it."""

    tensor: torch.Tensor
    memory: TargetMemory | None


class Destinations:
    """The destinations of a load, by item.

    Args:
        tensors: as the planner resolved them, one for each item; ``None`` for what is no tensor.
    """

    def __init__(self, tensors: Iterable[torch.Tensor | None] = ()) -> None:
        self._tensors: list[torch.Tensor | None] = []
        self._layouts: list[Layout | None] = []
        self._addresses = array("q")
        for resolved in tensors:
            tensor, layout, address = resolved, None, 0
            if tensor is not None:
                if type(tensor) is not torch.Tensor or tensor.requires_grad:
                    tensor = tensor.detach()  # a parameter becomes a plain tensor
                layout = _direct_layout(tensor)
                if layout is not None:
                    try:
                        address, end = tensor.data_ptr(), layout.nbytes
                        if offset := tensor.storage_offset():
                            end += int(offset) * tensor.itemsize
                        if tensor.untyped_storage().nbytes() < end or (end and not address):
                            layout, address = None, 0  # staged, unless it is refused later
                    except RuntimeError:  # tensors inside torch.func transforms have no address
                        layout = None
            self._tensors.append(tensor)
            self._layouts.append(layout)
            self._addresses.append(address)

    @property
    def layouts(self) -> Sequence[Layout | None]:
        """The memory layout of each target; ``None`` if it is staged. Equal ones are one object."""
        return self._layouts

    def get(self, item: int) -> Destination | None:
        """The item's destination; ``None`` if it was not resolved."""
        tensor = self._tensors[item] if item < len(self._tensors) else None
        return None if tensor is None else Destination(tensor, self.memory(item))

    def memory(self, item: int) -> TargetMemory | None:
        """The memory that workers may write the item to; ``None`` if it has to be staged."""
        layout = self._layouts[item] if 0 <= item < len(self._layouts) else None
        if layout is None:
            return None
        return TargetMemory(memory_at(self._addresses[item], layout.nbytes), layout)

    def needed_bytes(self, item: int) -> int | None:
        """Bytes of the item's target; ``None`` if it was not resolved."""
        if item >= len(self._tensors):
            return None
        layout, tensor = self._layouts[item], self._tensors[item]
        if layout is not None:
            return layout.packed_bytes
        return None if tensor is None else tensor.numel() * tensor.element_size()

    def with_shared_places(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Items whose target has one place for several elements, as ``expand`` makes it."""
        for item, tensor in self._staged():
            if has_shared_places(tensor):
                yield item, tensor

    def without_memory(self) -> Iterator[tuple[int, torch.Tensor, str]]:
        """Items whose target has no memory to write to, and why."""
        for item, tensor in self._staged():
            if (fault := memory_fault(tensor)) is not None:
                yield item, tensor, fault

    def _staged(self) -> list[tuple[int, torch.Tensor]]:
        """Targets that workers may not write to."""
        pairs = enumerate(zip(self._tensors, self._layouts, strict=True))
        return [
            (n, tensor) for n, (tensor, layout) in pairs if layout is None and tensor is not None
        ]

    def note_writes(self) -> None:
        """Tell autograd about the direct writes that follow; torch does so for copies itself."""
        note_writes(
            [
                tensor
                for tensor, layout in zip(self._tensors, self._layouts, strict=True)
                if tensor is not None and layout is not None
            ]
        )

    def direct_items(self) -> Iterator[int]:
        """Those that workers may write to."""
        return (item for item, layout in enumerate(self._layouts) if layout is not None)

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The addresses ``[first, end)`` of each item; both are 0 if unknown.

        Addresses on two devices may coincide. These items are then read in order, which is slower
        but correct.
        """
        first = np.array(self._addresses, dtype=np.int64)
        sizes = [0 if layout is None else layout.nbytes for layout in self._layouts]
        end = first + np.array(sizes, dtype=np.int64)
        for item, tensor in self._staged():
            if type(tensor) is torch.Tensor and tensor.layout is torch.strided:
                first[item], end[item] = extent(tensor)
        return first, end


class DirectTargets(Mapping[int, TargetMemory]):
    """The memory that workers may write to at any time: of targets by item, and of staging units.

    Args:
        destinations: of the items.
        ordered: items that must not be written before their turn.
    """

    def __init__(self, destinations: Destinations, ordered: Collection[int]) -> None:
        self._destinations = destinations
        self._ordered = ordered
        self._units: dict[int, TargetMemory] = {}

    def get(self, name: int, default: Any = None) -> Any:
        """The memory, or ``default``."""
        if (unit := self._units.get(name)) is not None:
            return unit
        memory = None if name in self._ordered else self._destinations.memory(name)
        return default if memory is None else memory

    def __getitem__(self, name: int) -> TargetMemory:
        """The memory.

        Raises:
            KeyError: there is none.
        """
        memory: TargetMemory | None = self.get(name)
        if memory is None:
            raise KeyError(name)
        return memory

    def __iter__(self) -> Iterator[int]:
        """The names of all."""
        direct = (item for item in self._destinations.direct_items() if item not in self._ordered)
        return chain(direct, self._units)

    def __len__(self) -> int:
        """How many there are."""
        return sum(1 for _ in self)

    def add_unit(self, name: int, memory: TargetMemory) -> None:
        """Staging memory, by a name that no item has."""
        self._units[name] = memory

    def drop_unit(self, name: int) -> None:
        """It is full, and has been moved on."""
        del self._units[name]


class Staging:
    """Memory that collects bytes until torch can take them.

    Its pages stay untouched until bytes arrive in them.
    """

    __slots__ = ("_owner", "memory", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._owner, self.memory = own_memory(nbytes)


def _direct_layout(tensor: torch.Tensor) -> Layout | None:
    """How the target lies in memory; ``None`` if it has to be staged."""
    if (
        type(tensor) is not torch.Tensor
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return None
    return _layout_of(tensor.dtype, tensor.shape, tensor.stride())


@lru_cache(maxsize=4096)
def _layout_of(dtype: torch.dtype, size: torch.Size, strides: tuple[int, ...]) -> Layout | None:
    """Cached: a model has many tensors of few layouts."""
    shape = tuple(size)
    if not _elements_are_apart(shape, strides):
        return None
    nbytes = geometry.extent_bytes(shape, strides, dtype.itemsize)
    return Layout(
        dtype_name(dtype), shape, strides, nbytes, geometry.block_bytes(shape, dtype.itemsize)
    )


def _elements_are_apart(shape: geometry.Shape, strides: geometry.Shape) -> bool:
    """Whether no two elements share memory, by the usual (sufficient) test."""
    end = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if stride < end:
            return False
        end = stride * size
    return True


def as_tensor(
    data: memoryview, dtype: str, lengths: geometry.Shape, order: geometry.Shape
) -> torch.Tensor:
    """A tensor over packed bytes; it shares them, and must not outlive them."""
    torch_dtype: torch.dtype = getattr(torch, dtype)
    # Not torch.empty, even without elements: it would obey a default device.
    content = data if len(data) else bytearray(torch_dtype.itemsize)
    flat = torch.frombuffer(content, dtype=torch.uint8).view(torch_dtype)
    return flat.as_strided(lengths, geometry.packed_strides(lengths, order))


def checksum(tensor: torch.Tensor) -> int:
    """The CRC-32 of a tensor's elements."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return crc32(flat.view(torch.uint8).numpy().data) if len(flat) else 0


def cut(tensor: torch.Tensor, offsets: geometry.Shape, lengths: geometry.Shape) -> torch.Tensor:
    """The block of ``lengths`` that begins at ``offsets``."""
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def load_fallback(data: memoryview, spec: RecordSpec) -> torch.Tensor:
    """The needed slice of a record that only torch can read."""
    tensor = torch_load.load_tensor(data)
    check_stored(spec, dtype_name(tensor.dtype), tuple(tensor.shape))
    return torch_load.narrow_tensor(tensor, spec.wanted.offsets, spec.wanted.lengths)


def is_sound(data: memoryview) -> bool:
    """Whether torch can open a record, of which the entries have been compared already."""
    return torch_load.can_open(data)


def require_shape(target: torch.Tensor, lengths: geometry.Shape) -> None:
    """Refuse a target that does not have the shape of the planned slice."""
    if tuple(target.shape) != tuple(lengths):
        raise _mismatch(tuple(lengths), tuple(target.shape), "target")


def target_without_memory(
    target: torch.Tensor, fault: str, *, fqn: str | None = None
) -> TargetMemoryError:
    """The error for a target that cannot be written to; ``fault`` comes from ``memory_fault``."""
    return TargetMemoryError(
        f"the target has no memory to load into: {fault}",
        fqn=fqn,
        expected=f"memory for {target.numel()} elements of {dtype_name(target.dtype)}",
        hint="Allocate the target before loading (model.to_empty(device=...), torch.empty_like)",
    )


def _mismatch(stored: geometry.Shape, wanted: geometry.Shape, what: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"stored tensor and {what} shape differ",
        expected=f"shape {wanted}",
        got=f"shape {stored}",
        hint="The model is not the one that was saved, or the planner maps it wrongly",
    )
