"""One ``torch.save`` archive, read by its local headers alone. Pure.

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

``data.pkl`` depends on dtype, shape and strides but not on values, so equal layouts have equal
bytes before the payload. Each such head is parsed once; a head that differs in a single bit is
parsed, and checked, anew.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from typing import Final

from paraload.core.checksum import crc32
from paraload.core.records import TensorRecord
from paraload.formats import NeedBytes, Unsupported
from paraload.formats.torch_pickle import OddError, tensor_in

#: Most headers end at byte 704; 1 KiB finds them with one read.
_FIRST_BYTES: Final = 1024
#: A header longer than this is not one of a plain tensor.
_MAX_HEAD_BYTES: Final = 1 << 16
_MAX_CACHED_LAYOUTS: Final = 4096

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_DESCRIPTOR_32: Final = struct.Struct("<4s3I")
_DESCRIPTOR_64: Final = struct.Struct("<4sI2Q")
_HAS_DESCRIPTOR: Final = 0x08


class TorchZipFormat:
    """:class:`~paraload.formats.ItemFormat` of plain tensors written by ``torch.save``."""

    first_bytes = _FIRST_BYTES
    has_checksum = True

    def __init__(self) -> None:
        self._by_head: dict[bytes, TensorRecord] = {}
        self._starts: set[int] = set()

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
        starts = tuple(self._starts)  # a copy: other threads may add to it
        heads = map(self._by_head.get, (head[:start] for start in starts))
        record = next(filter(None, heads), None)
        if record is None:
            found = _parse(head, record_bytes)
            if not isinstance(found, TensorRecord):
                return found
            record = found
            if len(self._by_head) >= _MAX_CACHED_LAYOUTS:
                self._by_head.clear()
                self._starts.clear()
            self._by_head[head[: record.start]] = record
            self._starts.add(record.start)
        if record.end > record_bytes:
            return Unsupported("payload outside its record")
        return record

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:
        return _descriptor_crc(trailer, payload_bytes)

    def __reduce__(self) -> tuple[type[TorchZipFormat], tuple[()]]:
        return TorchZipFormat, ()  # without the cache


class _Short(Exception):  # noqa: N818 - a signal inside this module, never an error outside it
    """The header is longer than the head."""


def _parse(head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
    try:
        return _parse_head(head)
    except _Short:
        if len(head) >= min(record_bytes, _MAX_HEAD_BYTES):
            return Unsupported("no payload in the header")
        return NeedBytes(min(record_bytes, 4 * max(len(head), _FIRST_BYTES)))
    except OddError as odd:
        return Unsupported(str(odd))


def _parse_head(head: bytes) -> TensorRecord:
    name, flags, _, at = _local_header(head, 0)
    if not name.endswith("/data.pkl"):
        raise OddError("not a torch.save archive")
    prefix = name.removesuffix("data.pkl")
    pickled, at = _small_entry(head, at, flags)
    tensor = tensor_in(pickled)
    byteorder = b""
    while True:
        name, flags, crc, start = _local_header(head, at)
        if name == f"{prefix}data/{tensor.key}":
            break
        content, at = _small_entry(head, start, flags)
        if name == f"{prefix}byteorder":
            byteorder = content
    if byteorder != sys.byteorder.encode():
        raise OddError("byte order unknown or not native")
    end = start + tensor.record.end
    has_trailer = bool(flags & _HAS_DESCRIPTOR)
    record = replace(
        tensor.record,
        start=start,
        end=end,
        crc=None if has_trailer else crc,
        trailer=(end, end + _DESCRIPTOR_64.size) if has_trailer else None,
    )
    if not record.is_sound():
        raise OddError("elements outside the payload")
    return record


def _local_header(head: bytes, at: int) -> tuple[str, int, int, int]:
    """``(name, flags, crc, start of the content)`` of the entry at ``at``."""
    if at + _LOCAL.size > len(head):
        raise _Short
    fields = _LOCAL.unpack_from(head, at)
    signature, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = fields
    if signature != _LOCAL_SIGNATURE:
        raise OddError("not a torch.save archive")
    if method:
        raise OddError("compressed archive")
    name_at = at + _LOCAL.size
    content_at = name_at + name_bytes + extra_bytes
    if content_at > len(head):
        raise _Short
    name = head[name_at : name_at + name_bytes].decode("utf-8", "replace")
    return name, flags, crc, content_at


def _small_entry(head: bytes, at: int, flags: int) -> tuple[bytes, int]:
    """Content and end of an entry: the first data descriptor that matches the bytes before it.

    Neither header nor directory are of use: torch writes the size into the descriptor alone.
    """
    if not flags & _HAS_DESCRIPTOR:
        raise OddError("archive without data descriptors")
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
        if len(trailer) >= layout.size:
            signature, crc, packed, unpacked = layout.unpack_from(trailer)
            if signature == _DESCRIPTOR_SIGNATURE and packed == unpacked == payload_bytes:
                return int(crc)
    return None
