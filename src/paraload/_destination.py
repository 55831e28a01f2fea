"""Destination: where bytes must land. The only module that touches tensor memory.

direct   a plain CPU tensor of the stored dtype: workers write into its own memory
staged   anything else (device, dtype, subclass, expanded): bytes are collected first, then
         torch copies them, with every conversion that ``Tensor.copy_`` knows
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from paraload import _geometry as geometry
from paraload._sink import Layout, TargetMemory
from paraload.errors import ItemReadError, ShapeMismatchError
from paraload.formats import _torch_load

if TYPE_CHECKING:
    from paraload._task import RecordSpec

__all__ = ["Destination", "Staging", "as_tensor", "copy_into", "resolve"]

_WRITABLE: Final = 0x200  # PyBUF_WRITE
_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.restype = ctypes.py_object
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


class Destination(NamedTuple):
    """A target tensor, and its memory if workers may write to it."""

    tensor: torch.Tensor
    memory: TargetMemory | None

    @property
    def needed_bytes(self) -> int:
        """Bytes of the target."""
        return self.tensor.numel() * self.tensor.element_size()

    def span(self) -> tuple[int, int] | None:
        """The addresses ``[first, end)`` that it covers; ``None`` where there is no telling."""
        if self.memory is None or not self.memory.layout.nbytes:
            return None
        first = self.tensor.data_ptr()
        return first, first + self.memory.layout.nbytes


class Staging:
    """Memory that collects bytes until torch can take them.

    Pages of a fresh tensor are not touched before bytes arrive in them.
    """

    __slots__ = ("memory", "nbytes", "tensor")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.tensor = torch.empty(nbytes, dtype=torch.uint8)
        self.memory = _view(self.tensor.data_ptr(), nbytes)


def resolve(tensor: torch.Tensor) -> Destination:
    """The destination that ``tensor``, as a planner resolved it, makes."""
    tensor = tensor.detach()
    return Destination(tensor, _memory_of(tensor))


def _memory_of(tensor: torch.Tensor) -> TargetMemory | None:
    if (
        type(tensor) is not torch.Tensor
        or tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return None
    layout = _layout_of(tensor.dtype, tensor.shape, tensor.stride())
    return TargetMemory(_view(tensor.data_ptr(), layout.nbytes), layout) if layout else None


@lru_cache(maxsize=4096)
def _layout_of(dtype: torch.dtype, size: torch.Size, strides: tuple[int, ...]) -> Layout | None:
    """Cached: a model has many tensors of few layouts."""
    shape = tuple(size)
    if not _elements_are_apart(shape, strides):
        return None
    nbytes = geometry.extent_bytes(shape, strides, dtype.itemsize)
    return Layout(str(dtype).removeprefix("torch."), shape, strides, nbytes)


def _elements_are_apart(shape: geometry.Shape, strides: geometry.Shape) -> bool:
    """Whether no two elements share memory, by the usual (sufficient) test."""
    end = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if stride < end:
            return False
        end = stride * size
    return True


def _view(address: int, nbytes: int) -> memoryview:
    if not nbytes:
        return memoryview(bytearray())
    view: memoryview = _memory_at(address, nbytes, _WRITABLE)
    return view


def as_tensor(
    data: memoryview, dtype: str, lengths: geometry.Shape, order: geometry.Shape
) -> torch.Tensor:
    """A tensor over packed bytes; it shares them, and must not outlive them."""
    torch_dtype: torch.dtype = getattr(torch, dtype)
    if not len(data):
        return torch.empty(lengths, dtype=torch_dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8).view(torch_dtype)
    return flat.as_strided(lengths, geometry.packed_strides(lengths, order))


def cut(tensor: torch.Tensor, offsets: geometry.Shape, lengths: geometry.Shape) -> torch.Tensor:
    """The block of ``lengths`` that begins at ``offsets``."""
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def load_fallback(data: memoryview, spec: RecordSpec) -> torch.Tensor:
    """The needed slice of a record that only torch can read."""
    tensor = _torch_load.load_tensor(data)
    if tensor.dim() != len(spec.info.lengths):
        raise _mismatch(tuple(tensor.shape), spec.info.lengths, "planned")
    return _torch_load.narrow_tensor(tensor, spec.info.storage_offsets, spec.info.lengths)


def require_shape(target: torch.Tensor, lengths: geometry.Shape) -> None:
    """Refuse a target that does not have the shape of the planned slice."""
    if tuple(target.shape) != tuple(lengths):
        raise _mismatch(tuple(lengths), tuple(target.shape), "target")


def copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy with torch, which converts dtype, device and layout.

    Raises:
        ShapeMismatchError: the shapes differ; ``copy_`` would broadcast some of these silently.
    """
    require_shape(target, tuple(source.shape))
    try:
        target.copy_(source)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ItemReadError(
            "torch cannot copy the stored tensor into its target",
            expected=f"a target that takes {source.dtype}",
            got=f"{target.dtype} on {target.device}: {error}",
        ) from error


def _mismatch(stored: geometry.Shape, wanted: geometry.Shape, what: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"stored tensor and {what} shape differ",
        expected=f"shape {wanted}",
        got=f"shape {stored}",
        hint="The model is not the one that was saved, or the planner maps it wrongly",
    )
