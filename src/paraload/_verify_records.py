"""Whether the bytes of records are those that were written. Runs in threads; no torch.

    small, decoded   in memory, many with one read: header, metadata, every entry of the archive
    big tensor       head and tail in memory, the payload in pieces: read, summed, forgotten
    big other        through zipfile, which reads the record piece by piece

What is wrong with a record is its answer; no record keeps another from being looked at.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from paraload._checks import check_range, check_stored, checksum_mismatch, trailer_crc
from paraload._checksum import combined, crc32
from paraload._records import decoded, locate_in, read_block
from paraload._task import RecordsTask
from paraload._verify_alike import Glance
from paraload._verify_entries import Around, RecordFile, check_entries
from paraload._work import item_error
from paraload.errors import DAMAGED_HINT, FormatError, ItemReadError
from paraload.formats._base import NeedBytes, TensorRecord, Unsupported
from paraload.formats._torch_zip import FIRST_HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paraload._task import LocateTask, RecordSpec
    from paraload._verify_alike import KnownArchives
    from paraload._work import Meter
    from paraload.formats._base import ItemFormat

__all__ = [
    "IN_MEMORY_BYTES",
    "SCRATCH_BYTES",
    "Checked",
    "PayloadCheck",
    "check_records",
    "sum_piece",
]

#: Records up to here are read with one read.
IN_MEMORY_BYTES: Final = 256 << 10
#: What one task sums of a payload, and what it reads at once into memory that it reads into again
#: and again: so the bytes are summed in the processor's cache, and never leave it. Of 256 KiB to
#: 8 MiB, 512 KiB to 2 MiB were the fastest.
PIECE_BYTES: Final = 16 << 20
SCRATCH_BYTES: Final = 1 << 20


class Checked(NamedTuple):
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


def check_records(
    meter: Meter, task: RecordsTask | LocateTask, known: KnownArchives
) -> list[Checked | ItemReadError]:
    """Check everything of some records but big payloads, which are handed back.

    Args:
        meter: reads them.
        task: records that are read together, or those that are located.
        known: archives that have been taken apart; gets those of these records.

    Returns:
        For each of them what was proved, or what is wrong.
    """
    block = None
    if isinstance(task, RecordsTask):
        with suppress(Exception):  # read one by one, so that each item tells its own problem
            block = memoryview(read_block(task, meter))
    answers: list[Checked | ItemReadError] = []
    for spec in task.specs:
        try:
            data = None if block is None else block[spec.start - task.start :][: spec.length]
            answers.append(_check_record(meter, spec, data, known))
        except Exception as error:  # noqa: BLE001 - damaged bytes provoke anything
            answers.append(item_error(error))
    return answers


def _check_record(
    meter: Meter, spec: RecordSpec, data: memoryview | None, known: KnownArchives
) -> Checked:
    """One record, of which ``data`` are the bytes if they have been read already."""
    check_range(spec, meter.size())
    if data is None and (spec.wanted.descriptors or spec.length <= IN_MEMORY_BYTES):
        data = memoryview(bytearray(spec.length))
        meter.read_into(spec.start, [data])
    if data is not None:
        if spec.wanted.descriptors:
            data = decoded(meter.work, spec, data)
        return _check_in_memory(meter, spec, data, known)
    found = _locate(meter, spec)
    if isinstance(found, TensorRecord):
        return _check_located(meter, spec, found, known)
    file = io.BufferedReader(RecordFile(meter, spec), 1 << 20)
    return _check_object(file, spec, spec.length)


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


def _check_in_memory(
    meter: Meter, spec: RecordSpec, data: memoryview, known: KnownArchives
) -> Checked:
    fmt = meter.work.format
    found = Unsupported("an object") if spec.kind == "bytes" else locate_in(fmt, data)
    if isinstance(found, Unsupported):
        return _check_object(io.BytesIO(data), spec, len(data))
    check_stored(spec, found.dtype, found.shape)
    head, tail = bytes(data[: found.start]), bytes(data[found.end :])
    glance = known.glance(head, tail, len(data)) or _taken_apart(
        io.BytesIO(data), fmt, found, head, tail, known
    )
    if glance.payload_crc and (got := crc32(data[found.start : found.end])) != glance.payload_crc:
        raise checksum_mismatch(glance.payload_crc, got)
    return _proved(found, glance)


def _check_located(
    meter: Meter, spec: RecordSpec, found: TensorRecord, known: KnownArchives
) -> Checked:
    """The small entries before and behind the payload; and what its checksum should be."""
    check_stored(spec, found.dtype, found.shape)
    around = Around(meter, spec, head_end=found.start, tail_start=found.end)
    head, tail = around.head, around.tail
    glance = known.glance(head, tail, spec.length) or _taken_apart(
        around, meter.work.format, found, head, tail, known
    )
    start, end = spec.start + found.start, spec.start + found.end
    payload = PayloadCheck(start=start, end=end, expected_crc=glance.payload_crc)
    return _proved(found, glance, payload if glance.payload_crc else None)


def _taken_apart(
    file: io.RawIOBase | io.BufferedIOBase,
    fmt: ItemFormat,
    found: TensorRecord,
    head: bytes,
    tail: bytes,
    known: KnownArchives,
) -> Glance:
    """All entries but the payload, of which directory and descriptor must say the same."""
    nbytes = found.end + len(tail)
    directory = check_entries(file, nbytes, payload_start=found.start)
    crc = found.crc or 0
    if found.trailer is not None:
        start, end = (at - found.end for at in found.trailer)
        crc = trailer_crc(fmt, tail[start:end], found.payload_bytes)
    if directory.payload is None:
        raise FormatError("the archive's directory lacks the payload", hint=DAMAGED_HINT)
    if crc != directory.payload.CRC:
        raise FormatError(
            "the archive's directory gives the payload another CRC-32",
            expected=f"CRC-32 {crc:08x}",
            got=f"{directory.payload.CRC:08x}",
            hint=DAMAGED_HINT,
        )
    known.learn(head, tail, nbytes, directory)
    return Glance(crc, directory.verified_bytes, directory.unverifiable_bytes)


def _proved(found: TensorRecord, glance: Glance, payload: PayloadCheck | None = None) -> Checked:
    summed_bytes = found.payload_bytes if glance.payload_crc else 0
    return Checked(
        verified_bytes=glance.verified_bytes + summed_bytes,
        unverifiable_bytes=glance.unverifiable_bytes + found.payload_bytes - summed_bytes,
        payload=payload,
    )


def _check_object(file: io.RawIOBase | io.BufferedIOBase, spec: RecordSpec, nbytes: int) -> Checked:
    """An object, or a tensor that only torch can read."""
    directory = check_entries(file, nbytes)
    return Checked(
        verified_bytes=directory.verified_bytes,
        unverifiable_bytes=directory.unverifiable_bytes,
        is_compared=spec.kind == "bytes",
    )
