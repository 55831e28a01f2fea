"""Checks of a record before its bytes are used. Pure: no I/O, no torch."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Final

from paraload.core.checksum import crc32
from paraload.core.records import DTYPE_BYTES, TensorRecord
from paraload.core.tasks import RecordSpec
from paraload.errors import (
    DAMAGED_HINT,
    ChecksumMismatchError,
    FormatError,
    ShapeMismatchError,
    ShortFileError,
)
from paraload.formats import ItemFormat
from paraload.geometry.runs import Shape

#: An object of unknown size may inflate to the larger of this size and this multiple of its length.
_OBJECT_BYTES: Final = 64 << 20
_INFLATION: Final = 256
#: Allowed for the other entries of a tensor's archive.
_HEADERS_BYTES: Final = 1 << 20


def check_range(spec: RecordSpec, file_bytes: int) -> None:
    """The record lies inside its file of ``file_bytes``."""
    if spec.start < 0 or spec.end < spec.start:
        raise FormatError(
            "metadata gives an impossible range",
            got=f"offset {spec.start}, length {spec.length}",
            hint="The metadata is damaged or belongs to another checkpoint",
        )
    if spec.end > file_bytes:
        raise ShortFileError(
            "file ends too early",
            expected=f"at least {spec.end} bytes",
            got=f"{file_bytes} bytes",
            hint="The file was cut, or is still being written",
        )


def check_stored(spec: RecordSpec, dtype: str, shape: Shape) -> None:
    """The stored tensor is the one in the metadata, and the planned slice lies inside it."""
    stored = spec.wanted.stored
    if stored is not None and stored != (dtype, shape):
        raise ShapeMismatchError(
            "the stored tensor is not the one that the metadata describes",
            expected=f"{stored.dtype} of shape {stored.shape}",
            got=f"{dtype} of shape {shape}",
            hint="File and metadata do not belong together",
        )
    offsets, lengths = spec.wanted.offsets, spec.wanted.lengths
    if not _lies_inside(offsets, lengths, shape):
        raise ShapeMismatchError(
            "planned slice does not lie inside the stored tensor",
            expected=f"offsets {offsets}, lengths {lengths}",
            got=f"stored shape {shape}",
            hint="File and metadata do not belong together",
        )


@lru_cache(maxsize=4096)
def _lies_inside(offsets: Shape, lengths: Shape, shape: Shape) -> bool:
    return len(shape) == len(lengths) == len(offsets) and all(
        o >= 0 and n >= 0 and o + n <= size
        for o, n, size in zip(offsets, lengths, shape, strict=True)
    )


def most_bytes(spec: RecordSpec) -> int:
    """Upper bound of a record's size when it is decoded; from the metadata, for a tensor."""
    stored = spec.wanted.stored
    if stored is None or stored.dtype not in DTYPE_BYTES:
        return max(_OBJECT_BYTES, _INFLATION * spec.length)
    return max(spec.length, prod(stored.shape) * DTYPE_BYTES[stored.dtype]) + _HEADERS_BYTES


def check_payload(fmt: ItemFormat, record: TensorRecord, data: memoryview) -> int:
    """Check the payload of the whole record in ``data``; return the bytes verified."""
    in_trailer = None
    if record.trailer is not None:
        trailer = bytes(data[slice(*record.trailer)])
        in_trailer = trailer_crc(fmt, trailer, record.payload_bytes)
    return check_crc(record, in_trailer, lambda: crc32(data[record.start : record.end]))


def check_crc(record: TensorRecord, in_trailer: int | None, computed: Callable[[], int]) -> int:
    """Compare the CRC-32 of a payload with that in its trailer, or else in its header.

    Returns the bytes verified: none if the file has no CRC-32.
    """
    expected = record.crc if in_trailer is None else in_trailer
    if not expected:
        return 0
    if (got := computed()) != expected:
        raise ChecksumMismatchError(
            "the tensor's bytes are damaged",
            expected=f"CRC-32 {expected:08x}",
            got=f"{got:08x}",
            hint=DAMAGED_HINT,
        )
    return record.payload_bytes


def trailer_crc(fmt: ItemFormat, trailer: bytes, payload_bytes: int) -> int:
    crc = fmt.read_trailer(trailer, payload_bytes)
    if crc is None:
        raise FormatError(
            "the descriptor behind the payload is damaged",
            expected=f"one for {payload_bytes} bytes",
            got=trailer[:16].hex(),
            hint=DAMAGED_HINT,
        )
    return crc
