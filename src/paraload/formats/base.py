"""ItemFormat: where a payload lies, told from bytes alone. No I/O, no torch.

A format gets the first bytes of a record and answers with a :class:`TensorRecord`, with
:class:`NeedBytes` (show me more), or with :class:`Unsupported` (this is for torch.load). It never
raises for strange bytes: damage that it meets makes the record Unsupported, and the fallback, which
reads everything, has the last word.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from paraload.geometry.runs import extent_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload.geometry.runs import Shape

__all__ = ["DTYPE_BYTES", "ItemFormat", "NeedBytes", "TensorRecord", "Unsupported"]

#: Bytes of an element for every dtype whose bytes can be taken as they are.
DTYPE_BYTES: Final[dict[str, int]] = {
    **dict.fromkeys(("bool", "uint8", "int8", "bits8", "bits1x8", "bits2x4", "bits4x2"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("float8_e8m0fnu", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16", "bits16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}

NATIVE_BYTEORDER: Final = sys.byteorder


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A stored tensor.

    Attributes:
        dtype: torch's name of the dtype, without ``torch.``.
        itemsize: bytes of an element.
        shape: of the tensor.
        strides: in elements.
        storage_offset: element of the payload that is the tensor's first.
        start: first byte of the payload, relative to the record.
        end: one past its last byte.
        crc: CRC-32 of the payload where the header tells it; 0 means that none was written.
        trailer: ``[start, end)`` of the descriptor behind the payload that tells the CRC instead.
    """

    dtype: str
    itemsize: int
    shape: Shape
    strides: Shape
    storage_offset: int
    start: int
    end: int
    crc: int | None = None
    trailer: tuple[int, int] | None = None

    def first_byte(self, offsets: Shape) -> int:
        """The byte, relative to the payload, of the element at ``offsets``."""
        if not any(offsets):
            return self.storage_offset * self.itemsize
        at = sum(o * s for o, s in zip(offsets, self.strides, strict=True))
        return (self.storage_offset + at) * self.itemsize

    @property
    def payload_bytes(self) -> int:
        """Length of the payload."""
        return self.end - self.start

    def is_sound(self) -> bool:
        """Every element lies in the payload, at a place of its own or of its neighbour's."""
        extent = extent_bytes(self.shape, self.strides, self.itemsize)
        first = self.storage_offset * self.itemsize
        return (
            0 <= self.start <= self.end
            and (extent == 0 or first + extent <= self.payload_bytes)
            and all(s >= 1 for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        )


@dataclass(frozen=True, slots=True)
class NeedBytes:
    """Ask again with the first ``nbytes`` of the record."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Not a plain tensor in this format; ``reason`` is counted in the report."""

    reason: str


class ItemFormat(Protocol):
    """Finds payloads in records of one format.

    Attributes:
        first_bytes: bytes of a record that :meth:`locate` is shown first.
        has_checksum: whether the format has a CRC-32 of the payload.
    """

    first_bytes: int
    has_checksum: bool

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:
        """Find the payload.

        Args:
            head: the first bytes of the record, at most ``record_bytes``.
            record_bytes: length of the whole record.
        """

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:
        """The CRC-32 in the bytes behind a payload; 0 if none was written, None if damaged."""


def locate(
    fmt: ItemFormat, read_head: Callable[[int], bytes], record_bytes: int, least_bytes: int = 0
) -> TensorRecord | Unsupported:
    """Show ``fmt`` the first bytes of a record, which ``read_head`` reads, until it knows.

    ``least_bytes`` are as cheap to read from the storage as fewer.
    """
    want = min(max(fmt.first_bytes, least_bytes), record_bytes)
    while isinstance(found := fmt.locate(read_head(want), record_bytes), NeedBytes):
        want = found.nbytes
    return found
