"""One ``torch.save`` archive, read by its local headers alone. PURE: bytes in, facts out.

The layout (torch 2.13 ``caffe2/serialize/inline_container.cc`` and ``torch/serialization.py``; all
numbers little-endian, no entry compressed)::

    PK 03 04 | flags, crc, sizes (0 when bit 3 is set) | name, extra   <prefix>/data.pkl
      pickle: _rebuild_tensor_v2(storage, storage_offset, shape, strides, requires_grad, hooks)
    PK 07 08 | crc32 u32 | size u32 or u64, twice                       its data descriptor
    PK 03 04 ...                                     <prefix>/.format_version, .storage_alignment
    PK 03 04 ...                                     <prefix>/byteorder: "little"
    PK 03 04 | ... | extra pads to 64 bytes          <prefix>/data/0
      THE PAYLOAD
    PK 07 08 | crc32 | size | size                   the trailer: absent for an empty payload
    ...                                              version, serialization id, central directory

``data.pkl`` names dtype, shape and strides but nothing of the values, so the bytes before the
payload are equal for equal layouts. They are parsed once and found again by comparing all of them:
a record whose header differs in a single bit is parsed, and checked, anew.

The pickle is read by an unpickler that can build nothing but the marks below.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, Final

from paraload._checksum import crc32
from paraload._opcodes import require_modest
from paraload.formats._base import (
    DTYPE_BYTES,
    NATIVE_BYTEORDER,
    NeedBytes,
    TensorRecord,
    Unsupported,
)

__all__ = ["FIRST_HEAD_BYTES", "TorchZipFormat"]

#: Most headers end at byte 704; 1 KiB finds them with one read.
FIRST_HEAD_BYTES: Final = 1024
#: A header longer than this is not one of a plain tensor.
_MAX_HEAD_BYTES: Final = 1 << 16
_MAX_CACHED_LAYOUTS: Final = 4096

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_DESCRIPTOR_32: Final = struct.Struct("<4s3I")
_DESCRIPTOR_64: Final = struct.Struct("<4sI2Q")
_HAS_DESCRIPTOR: Final = 0x08

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


class _Layouts:
    """Layouts by all the bytes that lie before the payload."""

    def __init__(self) -> None:
        self._by_head: dict[bytes, TensorRecord] = {}
        self._starts: set[int] = set()

    def find(self, head: bytes) -> TensorRecord | None:
        for start in tuple(self._starts):
            if (record := self._by_head.get(head[:start])) is not None:
                return record
        return None

    def add(self, head: bytes, record: TensorRecord) -> None:
        if len(self._by_head) >= _MAX_CACHED_LAYOUTS:
            self._by_head.clear()
            self._starts.clear()
        self._by_head[head[: record.start]] = record
        self._starts.add(record.start)


class TorchZipFormat:
    """:class:`~paraload.formats._base.ItemFormat` of plain tensors written by ``torch.save``."""

    def __init__(self) -> None:
        self._layouts = _Layouts()

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
        """Find the payload; see :class:`~paraload.formats._base.ItemFormat`."""
        record = self._layouts.find(head)
        if record is None:
            found = _parse(head, record_bytes)
            if not isinstance(found, TensorRecord):
                return found
            record = found
            self._layouts.add(head, record)
        if record.end > record_bytes:
            return Unsupported("payload outside its record")
        return record

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:
        """The CRC-32 that the data descriptor holds; see :class:`ItemFormat`."""
        return _descriptor_crc(trailer, payload_bytes)

    def __reduce__(self) -> tuple[type[TorchZipFormat], tuple[()]]:
        return TorchZipFormat, ()  # a cache does not travel


class _Short(Exception):  # noqa: N818 - a signal inside this module, never an error outside it
    """The header goes on behind the bytes at hand."""


class _Odd(Exception):  # noqa: N818 - likewise
    """Not the layout above."""


def _parse(head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
    try:
        return _parse_head(head)
    except _Short:
        if len(head) >= min(record_bytes, _MAX_HEAD_BYTES):
            return Unsupported("no payload in the header")
        return NeedBytes(min(record_bytes, 4 * max(len(head), FIRST_HEAD_BYTES)))
    except _Odd as odd:
        return Unsupported(str(odd))


def _parse_head(head: bytes) -> TensorRecord:
    name, flags, _, at = _local_header(head, 0)
    if not name.endswith("/data.pkl"):
        raise _Odd("no torch.save archive")
    prefix = name.removesuffix("data.pkl")
    pickled, at = _small_entry(head, at, flags)
    tensor = _unpickle(pickled)
    byteorder = b""
    while True:
        name, flags, crc, start = _local_header(head, at)
        if name == f"{prefix}data/{tensor['key']}":
            break
        content, at = _small_entry(head, start, flags)
        if name == f"{prefix}byteorder":
            byteorder = content
    if byteorder != NATIVE_BYTEORDER.encode():
        raise _Odd("byte order not told or not native")
    end = start + tensor["nbytes"]
    has_trailer = bool(flags & _HAS_DESCRIPTOR)
    record = TensorRecord(
        dtype=tensor["dtype"],
        itemsize=tensor["itemsize"],
        shape=tensor["shape"],
        strides=tensor["strides"],
        storage_offset=tensor["storage_offset"],
        start=start,
        end=end,
        crc=None if has_trailer else crc,
        trailer=(end, end + _DESCRIPTOR_64.size) if has_trailer else None,
    )
    if not record.is_sound():
        raise _Odd("elements outside the payload")
    return record


def _local_header(head: bytes, at: int) -> tuple[str, int, int, int]:
    """``(name, flags, crc, first byte of the content)`` of the entry at ``at``."""
    if at + _LOCAL.size > len(head):
        raise _Short
    fields = _LOCAL.unpack_from(head, at)
    signature, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = fields
    if signature != _LOCAL_SIGNATURE:
        raise _Odd("no torch.save archive")
    if method:
        raise _Odd("compressed archive")
    name_at = at + _LOCAL.size
    content_at = name_at + name_bytes + extra_bytes
    if content_at > len(head):
        raise _Short
    name = head[name_at : name_at + name_bytes].decode("utf-8", "replace")
    return name, flags, crc, content_at


def _small_entry(head: bytes, at: int, flags: int) -> tuple[bytes, int]:
    """Content and end of an entry whose size only its data descriptor tells."""
    if not flags & _HAS_DESCRIPTOR:
        raise _Odd("archive without data descriptors")
    found = at
    while (found := head.find(_DESCRIPTOR_SIGNATURE, found)) >= 0:
        if found + _DESCRIPTOR_32.size > len(head):
            break
        content = head[at:found]
        crc = _descriptor_crc(head[found : found + _DESCRIPTOR_32.size], len(content))
        if crc is not None and crc in (0, crc32(content)):
            return content, found + _DESCRIPTOR_32.size
        found += 1
    raise _Short


def _descriptor_crc(trailer: bytes | memoryview, payload_bytes: int) -> int | None:
    for layout in (_DESCRIPTOR_32, _DESCRIPTOR_64):
        if len(trailer) < layout.size:
            continue
        signature, crc, packed, unpacked = layout.unpack_from(trailer)
        if signature == _DESCRIPTOR_SIGNATURE and packed == unpacked == payload_bytes:
            return int(crc)
    return None


def _unpickle(pickled: bytes) -> dict[str, Any]:
    try:
        require_modest(pickled)
        mark = _HeaderUnpickler(io.BytesIO(pickled)).load()
    except _Odd:
        raise
    except Exception as error:  # a damaged pickle can raise anything; the fallback decides
        raise _Odd("data.pkl not understood") from error
    if not isinstance(mark, _Tensor):
        raise _Odd("no plain tensor")
    return mark.fields


class _Tensor:
    """The mark that stands for a rebuilt tensor; it has no state that a pickle could set."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __setstate__(self, state: object) -> None:
        raise _Odd("tensor with state")


class _Hooks:
    """The mark for the (empty) ``OrderedDict`` of backward hooks."""

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        raise _Odd("tensor with hooks")


def _rebuild_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if len(rest) > 2:  # noqa: PLR2004 - requires_grad, hooks; a third is conj and neg bits
        raise _Odd("tensor with math bits")
    return _rebuild(storage, offset, shape, strides, storage[0])


def _rebuild_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *rest: Any,
) -> _Tensor:
    if rest:
        raise _Odd("tensor with math bits")
    return _rebuild(storage, offset, shape, strides, dtype)


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> _Tensor:
    kind, key, numel = storage
    itemsize = DTYPE_BYTES.get(dtype)
    if itemsize is None:
        raise _Odd(f"dtype {dtype}")
    numbers = (offset, numel, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _Odd("numbers of no tensor")
    if len(shape) != len(strides):
        raise _Odd("numbers of no tensor")
    return _Tensor(
        {
            "dtype": dtype,
            "itemsize": itemsize,
            "shape": shape,
            "strides": strides,
            "storage_offset": offset,
            "key": key,
            "nbytes": numel if kind == "untyped" else numel * itemsize,
        }
    )


def _rebuild_parameter(tensor: Any, _requires_grad: Any, _hooks: Any) -> Any:
    return tensor


class _HeaderUnpickler(pickle.Unpickler):
    """Builds marks only: every global is one of the names below or refused."""

    _GLOBALS: Final = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("collections", "OrderedDict"): _Hooks,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (mark := self._GLOBALS.get((module, name))) is not None:
            return mark
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return "untyped"
        if module == "torch":
            return _STORAGE_DTYPES.get(name, name)  # the dtype of a storage class, or a dtype
        raise _Odd(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        tag, kind, key, _location, numel = pid
        if tag != "storage" or not isinstance(kind, str) or not isinstance(key, str):
            raise _Odd("no plain storage")
        return kind, key, numel
