"""Whether the bytes of one record are those that were written. Runs in threads; no torch.

    small, decoded   in memory: header, metadata, every entry of the archive
    big tensor       head and tail in memory, the payload in pieces: read, summed, forgotten
    big other        through zipfile, which reads the record piece by piece

Every entry of a record's archive is compared with its CRC-32: torch reads ``data.pkl`` and the
central directory, so damage there is damage, although paraload could do without.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, cast

from paraload._checks import (
    check_payload,
    check_range,
    check_stored,
    checksum_mismatch,
    trailer_crc,
)
from paraload._checksum import combined, crc32
from paraload._records import decoded, locate_in
from paraload.errors import DAMAGED_HINT, FormatError, ItemReadError
from paraload.formats._archive import check_entry
from paraload.formats._base import NeedBytes, TensorRecord, Unsupported
from paraload.formats._torch_zip import FIRST_HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paraload._task import RecordSpec
    from paraload._work import Meter

__all__ = ["IN_MEMORY_BYTES", "Checked", "PayloadCheck", "check_record"]

#: Records up to here are read with one read.
IN_MEMORY_BYTES: Final = 256 << 10
#: What one task sums of a payload, and what it reads at once into memory that it reads into again
#: and again: so the bytes are summed in the processor's cache, and never leave it. Of 256 KiB to
#: 8 MiB, 512 KiB to 2 MiB were the fastest.
PIECE_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 20
_ARCHIVE: Final = b"PK\x03\x04"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was proved of a record.

    Attributes:
        verified_bytes: compared with a CRC-32.
        unverifiable_bytes: that have none.
        is_compared: dtype and shape were compared with the metadata, or there are none.
        payload: what is left to be summed.
    """

    verified_bytes: int = 0
    unverifiable_bytes: int = 0
    is_compared: bool = True
    payload: PayloadCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadCheck:
    """A payload, bytes ``[start, end)`` of the file, that is summed in pieces."""

    start: int
    end: int
    expected_crc: int

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of the file, in order."""
        starts = range(self.start, self.end, PIECE_BYTES)
        return [(start, min(start + PIECE_BYTES, self.end)) for start in starts]

    def compare(self, crcs: Iterable[int]) -> None:
        """With the CRC-32 of each piece.

        Raises:
            ChecksumMismatchError: the payload is damaged.
        """
        lengths = (end - start for start, end in self.pieces())
        got = combined(zip(crcs, lengths, strict=True))
        if got != self.expected_crc:
            raise checksum_mismatch(self.expected_crc, got)


def sum_piece(meter: Meter, start: int, end: int, scratch: bytearray) -> int:
    """The CRC-32 of a piece of a payload."""
    crc = 0
    view = memoryview(scratch)
    for at in range(start, end, len(scratch)):
        part = view[: min(len(scratch), end - at)]
        meter.read_into(at, [part])
        crc = crc32(part, crc)
    return crc


def new_scratch() -> bytearray:
    """Memory that a thread reads pieces into."""
    return bytearray(_READ_BYTES)


def check_record(meter: Meter, spec: RecordSpec) -> Checked:
    """Check everything but a big payload, which is handed back.

    Raises:
        ItemReadError: the record is not what it should be.
    """
    check_range(spec, meter.size())
    if spec.wanted.descriptors:
        return _check_in_memory(meter, spec, decoded(meter.work, spec, _read_all(meter, spec)))
    if spec.length <= IN_MEMORY_BYTES:
        return _check_in_memory(meter, spec, _read_all(meter, spec))
    found = _locate(meter, spec)
    if isinstance(found, TensorRecord):
        return _check_around(meter, spec, found)
    file = io.BufferedReader(_RecordFile(meter, spec), 1 << 20)
    return _without_tensor(spec, *_check_entries(file, spec.length))


def _read_all(meter: Meter, spec: RecordSpec) -> memoryview:
    data = memoryview(bytearray(spec.length))
    meter.read_into(spec.start, [data])
    return data


def _locate(meter: Meter, spec: RecordSpec) -> TensorRecord | Unsupported:
    if spec.kind == "bytes":
        return Unsupported("an object")
    want = min(FIRST_HEAD_BYTES, spec.length)
    while True:
        head = bytearray(want)
        meter.read_into(spec.start, [memoryview(head)])
        found = meter.work.format.locate(bytes(head), spec.length)
        if not isinstance(found, NeedBytes):
            return found
        want = found.nbytes


def _check_in_memory(meter: Meter, spec: RecordSpec, data: memoryview) -> Checked:
    fmt = meter.work.format
    found = Unsupported("an object") if spec.kind == "bytes" else locate_in(fmt, data)
    if isinstance(found, TensorRecord):
        check_stored(spec, found.dtype, found.shape)
        check_payload(fmt, found, data)
    verified, unverifiable = _check_entries(io.BytesIO(data), len(data))
    if isinstance(found, TensorRecord):
        return Checked(verified_bytes=verified, unverifiable_bytes=unverifiable)
    return _without_tensor(spec, verified, unverifiable)


def _without_tensor(spec: RecordSpec, verified: int, unverifiable: int) -> Checked:
    return Checked(
        verified_bytes=verified,
        unverifiable_bytes=unverifiable,
        is_compared=spec.kind == "bytes",
    )


def _check_around(meter: Meter, spec: RecordSpec, found: TensorRecord) -> Checked:
    """The small entries before and behind the payload; and what its checksum should be."""
    check_stored(spec, found.dtype, found.shape)
    around = _Around(meter, spec, found)
    verified, unverifiable = _check_entries(around, spec.length, payload_start=found.start)
    expected = found.crc
    if found.trailer is not None:
        start, end = found.trailer
        around.seek(start)
        trailer = around.read(min(end, spec.length) - start) or b""
        expected = trailer_crc(meter.work.format, trailer, found.payload_bytes)
    if not expected:
        return Checked(
            verified_bytes=verified, unverifiable_bytes=unverifiable + found.payload_bytes
        )
    payload = PayloadCheck(
        start=spec.start + found.start, end=spec.start + found.end, expected_crc=expected
    )
    return Checked(
        verified_bytes=verified + found.payload_bytes,
        unverifiable_bytes=unverifiable,
        payload=payload,
    )


# ------------------------------------------------------------------------------ entries of archives


def _check_entries(
    file: io.RawIOBase | io.BufferedIOBase, nbytes: int, *, payload_start: int | None = None
) -> tuple[int, int]:
    """Check all entries of the archive in ``file`` but the payload.

    Returns:
        Bytes that were proved right, and bytes that cannot be.
    """
    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", file))  # it reads and seeks, that is all
    except ItemReadError:
        raise
    except Exception as error:  # BadZipFile, struct.error and more, of damaged bytes
        file.seek(0)
        if (file.read(len(_ARCHIVE)) or b"") != _ARCHIVE:
            return 0, nbytes  # written by a torch that knew no archives
        raise FormatError(
            "the record's archive has a damaged directory, so that torch cannot open it",
            got=f"{type(error).__name__}: {error}",
            hint=DAMAGED_HINT,
        ) from error
    verified = unverifiable = 0
    with archive:
        for info in archive.infolist():
            if payload_start is not None and _starts_at(file, info) == payload_start:
                continue
            if info.CRC == 0 and info.file_size:
                unverifiable += info.file_size
                continue
            verified += check_entry(archive, info)
    return verified, unverifiable


def _starts_at(file: io.RawIOBase | io.BufferedIOBase, info: zipfile.ZipInfo) -> int:
    """First byte of an entry, as its local header tells."""
    file.seek(info.header_offset)
    header = file.read(30) or b""
    if len(header) < 30 or not header.startswith(_ARCHIVE):  # noqa: PLR2004 - the format's
        raise FormatError("an entry's local header is damaged", hint=DAMAGED_HINT)
    names: tuple[int, int] = struct.unpack("<2H", header[26:30])
    return info.header_offset + len(header) + sum(names)


class _RecordFile(io.RawIOBase):
    """A record as a file, for zipfile."""

    def __init__(self, meter: Meter, spec: RecordSpec) -> None:
        super().__init__()
        self._meter = meter
        self._spec = spec
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._spec.length}[whence]
        if base + offset < 0:
            raise ValueError("before the record")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        nbytes = max(0, min(len(view), self._spec.length - self._at))
        if nbytes:
            self._fill(self._at, view[:nbytes])
        self._at += nbytes
        return nbytes

    def _fill(self, start: int, view: memoryview) -> None:
        self._meter.read_into(self._spec.start + start, [view])


class _Around(_RecordFile):
    """The same without the payload: what is before and behind it was read at once."""

    def __init__(self, meter: Meter, spec: RecordSpec, found: TensorRecord) -> None:
        super().__init__(meter, spec)
        self._head_end, self._tail_start = found.start, found.end
        self._head = memoryview(bytearray(found.start))
        self._tail = memoryview(bytearray(spec.length - found.end))
        meter.read_into(spec.start, [self._head])
        meter.read_into(spec.start + found.end, [self._tail])

    def _fill(self, start: int, view: memoryview) -> None:
        end = start + len(view)
        if end <= self._head_end:
            view[:] = self._head[start:end]
        elif start >= self._tail_start:
            view[:] = self._tail[start - self._tail_start : end - self._tail_start]
        else:
            super()._fill(start, view)
