"""The memory behind tensors, for reads that bypass torch.

torch checks the writes that it makes itself; for our own, we make these checks here. Our buffers
come from torch's allocator, but not from a factory such as ``torch.empty``: a default device, a
mode, or a library that patches factories (accelerate) would put them elsewhere.
"""

import ctypes
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch

from paraload.core.compat import (
    count_dispatch_modes,
    disable_dispatch_modes,
    is_fake,
    is_zero_tensor,
)
from paraload.core.results import Staged
from paraload.geometry import runs as geometry

TENSOR_TYPES: Final = frozenset({torch.Tensor, torch.nn.Parameter})

_WRITABLE: Final = 0x200  # PyBUF_WRITE
_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.restype = ctypes.py_object
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
#: The whole address space. Slicing this view takes 0.06 us, a ctypes call for each tensor 0.4 us.
_FIRST_ADDRESS: Final = 4096
_EVERYWHERE: Final[memoryview] = _memory_at(_FIRST_ADDRESS, 1 << 62, _WRITABLE)


def memory_at(address: int, nbytes: int) -> memoryview:
    """A view of this process's memory. It does not keep the memory alive."""
    if not nbytes:
        return memoryview(bytearray())
    return _EVERYWHERE[address - _FIRST_ADDRESS : address - _FIRST_ADDRESS + nbytes]


class Staging:
    """Uninitialised memory, whose pages stay untouched until bytes arrive in them."""

    __slots__ = ("_storage", "memory")

    def __init__(self, nbytes: int) -> None:
        self._storage = torch.UntypedStorage(nbytes, device="cpu")
        self.memory = memory_at(self._storage.data_ptr(), nbytes)


def as_tensor(staged: Staged) -> torch.Tensor:
    """A tensor over staged elements. It shares their memory and must not outlive it."""
    dtype: torch.dtype = getattr(torch, staged.dtype)
    # Not torch.empty, even without elements: it would obey a default device.
    content = staged.data if len(staged.data) else bytearray(dtype.itemsize)
    flat = torch.frombuffer(content, dtype=torch.uint8).view(dtype)
    strides = geometry.packed_strides(staged.lengths, staged.order)
    tensor = flat.as_strided(staged.lengths, strides)
    return tensor if staged.cut is None else cut(tensor, *staged.cut)


def cut(tensor: torch.Tensor, offsets: geometry.Shape, lengths: geometry.Shape) -> torch.Tensor:
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses ``[first, end)`` of a strided tensor; ``(0, 0)`` if it has none."""
    try:
        first = tensor.data_ptr()  # 0 for a wrapper subclass, whose memory is elsewhere
    except RuntimeError:
        first = 0
    if not first:
        return 0, 0
    return first, first + geometry.extent_bytes(tensor.shape, tensor.stride(), tensor.itemsize)


def elements_are_apart(pairs: Iterable[tuple[int, int]]) -> bool:
    """A sufficient test, on stride and size of each dimension, that no elements share memory."""
    end = 1
    for stride, size in sorted((stride, size) for stride, size in pairs if size > 1):
        if stride < end:
            return False
        end = stride * size
    return True


def has_shared_places(tensor: torch.Tensor) -> bool:
    """Whether several elements share one address, as in the result of ``expand``.

    >>> has_shared_places(torch.zeros(1, 3).expand(2, 3))
    True
    >>> has_shared_places(torch.zeros(8).as_strided((2, 3), (3, 2)))  # interleaved
    False
    """
    if tensor.layout is not torch.strided:
        return False
    shape, strides = tuple(tensor.shape), tensor.stride()
    if elements_are_apart(zip(strides, shape, strict=True)):
        return False
    if any(stride == 0 and size > 1 for stride, size in zip(strides, shape, strict=True)):
        return True
    taken = np.zeros(geometry.extent_bytes(shape, strides, 1), np.bool_)
    np.lib.stride_tricks.as_strided(taken, shape, strides)[...] = True
    return int(np.count_nonzero(taken)) < tensor.numel()


def memory_fault(tensor: torch.Tensor) -> str | None:
    """Why ``tensor`` cannot be written to; ``None`` if no reason is known.

    >>> freed = torch.zeros(4)
    >>> _ = freed.untyped_storage().resize_(0)
    >>> memory_fault(freed)
    'its storage has 0 bytes of the 16 that it needs'
    """
    if not tensor.numel():
        return None
    if tensor.is_meta:
        return "it is on the meta device"
    if type(tensor) not in TENSOR_TYPES:
        return "it is a fake tensor" if is_fake(tensor) else None
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}; load into a dense tensor and convert that"
    return _storage_fault(tensor)


def _storage_fault(tensor: torch.Tensor) -> str | None:
    if is_zero_tensor(tensor):
        return "it is a zero tensor without storage"
    extent_bytes = geometry.extent_bytes(tensor.shape, tensor.stride(), tensor.itemsize)
    needed_bytes = tensor.storage_offset() * tensor.itemsize + extent_bytes
    try:
        storage_bytes = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return None  # backends without storage copy in their own way
    if storage_bytes >= needed_bytes:
        return None
    return f"its storage has {storage_bytes} bytes of the {needed_bytes} that it needs"


def dispatch_modes_off() -> AbstractContextManager[Any]:
    """Turn off dispatch modes (fake tensors, tracers) in the block: its copies must be real."""
    modes_off: AbstractContextManager[Any] = nullcontext()
    if count_dispatch_modes():
        modes_off = disable_dispatch_modes()
    return modes_off
