"""The targets of a load, and which of them workers may write to.

direct   a plain CPU tensor of the stored dtype: workers write into its own memory
staged   anything else (device, dtype, subclass, expanded): bytes are collected first, then
         torch copies them, with every conversion that ``Tensor.copy_`` knows

The targets are columns (``Targets``), and only the item at hand becomes an object: with an
object of each kind for every item, a million small tensors took a third more time to plan.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paraload.core.memory import Layout, TargetMemory
from paraload.core.records import dtype_name
from paraload.destinations.tensor_memory import (
    elements_are_apart,
    extent,
    has_shared_places,
    memory_at,
    memory_fault,
)
from paraload.errors import ShapeMismatchError, TargetMemoryError
from paraload.geometry import runs as geometry


class Target(NamedTuple):
    """What the planner resolved an item to, detached."""

    tensor: torch.Tensor


class Targets:
    """The targets of a load, by item.

    ``tensors`` are as the planner resolved them, ``None`` for bytes items. ``layouts`` has the
    memory layout of each, ``None`` if it is staged; equal ones are one object.
    """

    def __init__(self, tensors: Iterable[torch.Tensor | None] = ()) -> None:
        self._tensors: list[torch.Tensor | None] = []
        self.layouts: list[Layout | None] = []
        self._addresses = array("q")
        self._staged: list[tuple[int, torch.Tensor]] = []
        for item, resolved in enumerate(tensors):
            tensor, layout, address = resolved, None, 0
            if tensor is not None:
                if type(tensor) is not torch.Tensor or tensor.requires_grad:
                    tensor = tensor.detach()  # a parameter becomes a plain tensor
                layout, address = _direct_memory(tensor)
                if layout is None:
                    self._staged.append((item, tensor))
            self._tensors.append(tensor)
            self.layouts.append(layout)
            self._addresses.append(address)

    def get(self, item: int) -> Target | None:
        """The item's target; ``None`` if it was not resolved."""
        tensor = self._tensors[item] if item < len(self._tensors) else None
        return None if tensor is None else Target(tensor)

    def memory(self, item: int) -> TargetMemory | None:
        """The memory that workers may write the item to; ``None`` if it has to be staged."""
        layout = self.layouts[item] if 0 <= item < len(self.layouts) else None
        if layout is None:
            return None
        return TargetMemory(memory_at(self._addresses[item], layout.nbytes), layout)

    def needed_bytes(self, item: int) -> int | None:
        """Bytes of the item's target; ``None`` if it was not resolved."""
        tensor = self._tensors[item] if item < len(self._tensors) else None
        if tensor is None:
            return None
        layout = self.layouts[item]
        return tensor.numel() * tensor.element_size() if layout is None else layout.packed_bytes

    def with_shared_places(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Items whose target has one place for several elements, as ``expand`` makes it."""
        return ((item, tensor) for item, tensor in self._staged if has_shared_places(tensor))

    def without_memory(self) -> Iterator[tuple[int, torch.Tensor, str]]:
        """Items whose target has no memory to write to, and why."""
        for item, tensor in self._staged:
            if (fault := memory_fault(tensor)) is not None:
                yield item, tensor, fault

    def note_writes(self) -> None:
        """Tell autograd of the direct writes, so that a stale backward pass is an error.

        torch does so for copies itself.
        """
        pairs = zip(self._tensors, self.layouts, strict=True)
        torch.autograd.graph.increment_version(
            [tensor for tensor, layout in pairs if tensor is not None and layout is not None]
        )

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The addresses ``[first, end)`` of each item; both are 0 if unknown.

        Addresses on two devices may coincide. These items are then read in order, which is slower
        but correct.
        """
        first = np.array(self._addresses, dtype=np.int64)
        sizes = [0 if layout is None else layout.nbytes for layout in self.layouts]
        end = first + np.array(sizes, dtype=np.int64)
        for item, tensor in self._staged:
            if type(tensor) is torch.Tensor and tensor.layout is torch.strided:
                first[item], end[item] = extent(tensor)
        return first, end


class DirectTargets(dict[int, TargetMemory]):
    """The memory that workers may write to: units of staging memory, and targets by item.

    Units are entries; targets are only looked up, and not those of ``ordered`` items, which must
    not be written before their turn.
    """

    def __init__(self, targets: Targets, ordered: Collection[int]) -> None:
        super().__init__()
        self._targets = targets
        self._ordered = ordered

    def get(self, name: int, default: Any = None) -> Any:
        if name in self:
            return self[name]
        memory = None if name in self._ordered else self._targets.memory(name)
        return default if memory is None else memory

    def __missing__(self, name: int) -> TargetMemory:
        memory: TargetMemory | None = self.get(name)
        if memory is None:
            raise KeyError(name)
        return memory


def _direct_memory(tensor: torch.Tensor) -> tuple[Layout | None, int]:
    """Layout and address of a target that workers may write to; ``(None, 0)`` for any other."""
    if (
        type(tensor) is not torch.Tensor
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or tensor.is_conj()
        or tensor.is_neg()
        or (layout := _layout_of(tensor.dtype, tensor.shape, tensor.stride())) is None
    ):
        return None, 0
    end = layout.nbytes
    try:
        address = tensor.data_ptr()
        if offset := tensor.storage_offset():
            end += int(offset) * tensor.itemsize
        if tensor.untyped_storage().nbytes() < end or (end and not address):
            return None, 0
    except RuntimeError:  # tensors inside torch.func transforms have no address
        return None, 0
    return layout, address


@lru_cache(maxsize=4096)
def _layout_of(dtype: torch.dtype, size: torch.Size, strides: tuple[int, ...]) -> Layout | None:
    """Cached: a model has many tensors of few layouts."""
    shape = tuple(size)
    if not elements_are_apart(zip(strides, shape, strict=True)):
        return None
    nbytes = geometry.extent_bytes(shape, strides, dtype.itemsize)
    return Layout(
        dtype_name(dtype), shape, strides, nbytes, geometry.block_bytes(shape, dtype.itemsize)
    )


def require_shape(target: torch.Tensor, lengths: geometry.Shape) -> None:
    """Refuse a target that does not have the shape of the planned slice."""
    if tuple(target.shape) != tuple(lengths):
        raise ShapeMismatchError(
            "stored tensor and target shape differ",
            expected=f"shape {tuple(target.shape)}",
            got=f"shape {tuple(lengths)}",
            hint="The model is not the one that was saved, or the planner maps it wrongly",
        )


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
