"""``data.pkl`` of a ``torch.save`` archive that holds one tensor. Pure.

Its unpickler can build nothing but the stand-ins below. A pickle that asks for more is left to
torch.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from paraload.core.pickle_scan import require_bounded_memory
from paraload.core.records import DTYPE_BYTES, TensorRecord

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
    """A tensor whose record begins and ends with its payload, and the payload's name.

    A tuple, since a pickle cannot set its attributes.
    """

    record: TensorRecord
    key: str


def tensor_in(pickled: bytes) -> PickledTensor:
    """Parse the pickle of one plain tensor; raise :class:`OddError` for anything else."""
    try:
        require_bounded_memory(pickled)
        tensor = _HeaderUnpickler(io.BytesIO(pickled)).load()
    except OddError:
        raise
    except Exception as error:  # a damaged pickle can raise anything; the fallback decides
        raise OddError("data.pkl not understood") from error
    if not isinstance(tensor, PickledTensor):
        raise OddError("not a plain tensor")
    return tensor


def _rebuild_v2(storage: Any, *args: Any) -> PickledTensor:
    (offset, shape, strides, requires_grad, hooks), math_bits = args[:5], args[5:]
    return _rebuild_v3(
        storage, offset, shape, strides, requires_grad, hooks, storage[0], *math_bits
    )


def _rebuild_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> PickledTensor:
    (_requires_grad, _hooks, dtype), math_bits = rest[:3], rest[3:]
    if math_bits:
        raise OddError("tensor with math bits")
    kind, key, numel = storage
    itemsize = DTYPE_BYTES.get(dtype)
    if itemsize is None:
        raise OddError(f"dtype {dtype}")
    numbers = (offset, numel, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise OddError("impossible tensor sizes")
    record = TensorRecord(
        dtype=dtype,
        itemsize=itemsize,
        shape=shape,
        strides=strides,
        storage_offset=offset,
        start=0,
        end=numel if kind == "untyped" else numel * itemsize,
    )
    return PickledTensor(record, key)


def _rebuild_parameter(tensor: Any, _requires_grad: Any, _hooks: Any) -> Any:
    return tensor


class _HeaderUnpickler(pickle.Unpickler):
    _STAND_INS: Final = {
        ("collections", "OrderedDict"): tuple,  # of backward hooks, which has to be empty
        ("torch.storage", "UntypedStorage"): "untyped",
    }
    _FUNCTIONS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (stand_in := self._STAND_INS.get((module, name))) is not None:
            return stand_in
        if (function := self._FUNCTIONS.get((module, name))) is not None:
            # A new function each time, since BUILD could set its attributes.
            return lambda *args: function(*args)  # noqa: PLW0108
        if module == "torch":
            return _STORAGE_DTYPES.get(name, name)  # the dtype of a storage class, or a dtype
        raise OddError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        tag, kind, key, _location, numel = pid
        if tag != "storage" or not isinstance(kind, str) or not isinstance(key, str):
            raise OddError("not a plain storage")
        return kind, key, numel
