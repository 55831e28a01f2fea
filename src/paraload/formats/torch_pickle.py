"""``data.pkl`` of a ``torch.save`` archive that holds one tensor: what the tensor is. PURE.

Its unpickler can build nothing but the marks below. A pickle that asks for more is left to torch.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Final, NamedTuple

from paraload.core.pickle_scan import require_bounded_memory
from paraload.core.records import DTYPE_BYTES

_STORAGE_DTYPES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}


class OddError(Exception):
    """Not what torch writes for a plain tensor; the text says why. Never leaves the format."""


class PickledTensor(NamedTuple):
    """A tensor, as fields of a ``TensorRecord``, and its payload."""

    fields: dict[str, Any]
    key: str
    nbytes: int


def tensor_in(pickled: bytes) -> PickledTensor:
    """Parse the pickle of one plain tensor; raise :class:`OddError` for anything else."""
    try:
        require_bounded_memory(pickled)
        mark = _HeaderUnpickler(io.BytesIO(pickled)).load()
    except OddError:
        raise
    except Exception as error:  # a damaged pickle can raise anything; the fallback decides
        raise OddError("data.pkl not understood") from error
    if not isinstance(mark, _Tensor):
        raise OddError("not a plain tensor")
    return mark.tensor


class _Tensor:
    """Stands for a rebuilt tensor. It refuses state that the pickle tries to set."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: PickledTensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: object) -> None:
        raise OddError("tensor with state")


class _Hooks:
    """Stands for the ``OrderedDict`` of backward hooks, which has to be empty."""

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        raise OddError("tensor with hooks")


def _rebuild_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if len(rest) > 2:  # noqa: PLR2004 - requires_grad, hooks; a third is conj and neg bits
        raise OddError("tensor with math bits")
    return _rebuild(storage, offset, shape, strides, storage[0])


def _rebuild_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if len(rest) > 3:  # noqa: PLR2004 - requires_grad, hooks, dtype; a fourth as above
        raise OddError("tensor with math bits")
    return _rebuild(storage, offset, shape, strides, rest[2])


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> _Tensor:
    kind, key, numel = storage
    itemsize = DTYPE_BYTES.get(dtype)
    if itemsize is None:
        raise OddError(f"dtype {dtype}")
    numbers = (offset, numel, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise OddError("impossible tensor sizes")
    if len(shape) != len(strides):
        raise OddError("impossible tensor sizes")
    fields = {
        "dtype": dtype,
        "itemsize": itemsize,
        "shape": shape,
        "strides": strides,
        "storage_offset": offset,
    }
    nbytes = numel if kind == "untyped" else numel * itemsize
    return _Tensor(PickledTensor(fields, key, nbytes))


def _rebuild_parameter(tensor: Any, _requires_grad: Any, _hooks: Any) -> Any:
    return tensor


class _HeaderUnpickler(pickle.Unpickler):
    _GLOBALS: Final = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("collections", "OrderedDict"): _Hooks,
        ("torch.storage", "UntypedStorage"): "untyped",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (mark := self._GLOBALS.get((module, name))) is not None:
            return mark
        if module == "torch":
            return _STORAGE_DTYPES.get(name, name)  # the dtype of a storage class, or a dtype
        raise OddError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        tag, kind, key, _location, numel = pid
        if tag != "storage" or not isinstance(kind, str) or not isinstance(key, str):
            raise OddError("not a plain storage")
        return kind, key, numel
