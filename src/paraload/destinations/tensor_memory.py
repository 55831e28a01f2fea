"""The memory behind tensors, for reads that bypass torch.

torch checks each write that it makes itself. Reads straight into a tensor's memory bypass these
checks, so we make them here: the memory exists, and autograd learns of the write. Our own buffers
come from torch's allocator, but not from a factory such as ``torch.empty``: a default device, a
mode, or a library that patches factories (accelerate) would put them elsewhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from typing import Any, Final

import numpy as np
import torch
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _python_dispatch

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


def own_memory(nbytes: int) -> tuple[Any, memoryview]:
    """Uninitialised memory as ``(owner, view)``; the view must not outlive the owner."""
    owner = torch.UntypedStorage(nbytes, device="cpu")
    return owner, memory_at(owner.data_ptr(), nbytes)


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses ``[first, end)`` of a strided tensor; ``(0, 0)`` if it has none."""
    try:
        first = tensor.data_ptr()
    except RuntimeError:
        return 0, 0
    if not first:  # a wrapper subclass, whose memory is elsewhere
        return 0, 0
    return first, first + geometry.extent_bytes(tensor.shape, tensor.stride(), tensor.itemsize)


def has_shared_places(tensor: torch.Tensor) -> bool:
    """Whether several elements share one address, as in the result of ``expand``.

    >>> has_shared_places(torch.zeros(1, 3).expand(2, 3))
    True
    >>> has_shared_places(torch.zeros(8).as_strided((2, 3), (3, 2)))  # interleaved
    False
    """
    if tensor.layout is not torch.strided:
        return False
    pairs = [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    if any(step == 0 for _, step in pairs):
        return True
    end = 1
    for size, stride in sorted(pairs, key=itemgetter(1)):
        if stride < end:
            break
        end = stride * size
    else:
        return False
    shape, strides = zip(*pairs, strict=True)
    taken = np.zeros(geometry.extent_bytes(shape, strides, 1), np.bool_)
    np.lib.stride_tricks.as_strided(taken, shape, strides)[...] = True
    return int(np.count_nonzero(taken)) < tensor.numel()


def memory_fault(tensor: torch.Tensor) -> str | None:
    """Why ``tensor`` cannot be written to; ``None`` if nothing is known against it.

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
    if tensor._is_zerotensor():  # noqa: SLF001 - torch has no public function for it
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


def note_writes(tensors: Iterable[torch.Tensor]) -> None:
    """Tell autograd of writes to ``tensors``, so that a stale backward pass is an error."""
    torch.autograd.graph.increment_version(tensors)


def dispatch_modes_off() -> AbstractContextManager[Any]:
    """Turn off dispatch modes (fake tensors, tracers) in the block: its copies must be real."""
    if not torch._C._len_torch_dispatch_stack():  # noqa: SLF001 - there is no public function
        return nullcontext()
    modes_off: AbstractContextManager[Any] = _python_dispatch._disable_current_modes()  # noqa: SLF001
    return modes_off
