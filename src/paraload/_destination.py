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
#: All addresses that a process can have: to slice this takes 0.06 us, and 0.4 us to make a view of
#: each tensor by a call through ctypes.
_FIRST_ADDRESS: Final = 4096
_EVERYWHERE: Final[memoryview] = _memory_at(_FIRST_ADDRESS, 1 << 62, _WRITABLE)


class Destination(NamedTuple):
    """A target tensor, and its memory (which begins at ``address``) if workers may write to it."""

    tensor: torch.Tensor
    memory: TargetMemory | None
    address: int = 0

    @property
    def needed_bytes(self) -> int:
        """Bytes of the target."""
        if self.memory is not None:
            return self.memory.layout.packed_bytes
        return self.tensor.numel() * self.tensor.element_size()

    def span(self) -> tuple[int, int] | None:
        """The addresses ``[first, end)`` that it covers; ``None`` where there is no telling."""
        if self.memory is None or not self.memory.layout.nbytes:
            return None
        return self.address, self.address + self.memory.layout.nbytes


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
    if type(tensor) is not torch.Tensor or tensor.requires_grad:
        tensor = tensor.detach()  # a parameter becomes a plain tensor; both can be written to
    if (
        type(tensor) is not torch.Tensor
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return Destination(tensor, None)
    layout = _layout_of(tensor.dtype, tensor.shape, tensor.stride())
    if layout is None:
        return Destination(tensor, None)
    address = tensor.data_ptr()
    return Destination(tensor, TargetMemory(_view(address, layout.nbytes), layout), address)


@lru_cache(maxsize=4096)
def _layout_of(dtype: torch.dtype, size: torch.Size, strides: tuple[int, ...]) -> Layout | None:
    """Cached: a model has many tensors of few layouts."""
    shape = tuple(size)
    if not _elements_are_apart(shape, strides):
        return None
    nbytes = geometry.extent_bytes(shape, strides, dtype.itemsize)
    name = str(dtype).removeprefix("torch.")
    return Layout(name, shape, strides, nbytes, geometry.block_bytes(shape, dtype.itemsize))


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
    return _EVERYWHERE[address - _FIRST_ADDRESS : address - _FIRST_ADDRESS + nbytes]


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
    if tensor.dim() != len(spec.wanted.lengths):
        raise _mismatch(tuple(tensor.shape), spec.wanted.lengths, "planned")
    return _torch_load.narrow_tensor(tensor, spec.wanted.offsets, spec.wanted.lengths)


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
