"""Checks the whole archive of a record, and keeps nothing of it. No torch.

small, decoded   in memory: the entries around the payload, and the payload
big tensor       from the file: the entries around the payload; the engine sums the payload
anything else    every entry, through zipfile, which reads the record piece by piece
"""

import io
from dataclasses import replace

from paraload.core.records import TensorRecord
from paraload.core.results import Audited
from paraload.core.tasks import RecordSpec
from paraload.errors import DAMAGED_HINT, FormatError
from paraload.formats import ItemFormat, Unsupported
from paraload.formats.archive import Directory, check_entries
from paraload.formats.record_checks import check_payload, check_range, trailer_crc
from paraload.sources.range_stream import BUFFER_BYTES, RangeFile
from paraload.workers.layout_cache import LayoutCache
from paraload.workers.read_context import TaskReader


def audit_record(
    reader: TaskReader,
    layouts: LayoutCache,
    spec: RecordSpec,
    found: TensorRecord | Unsupported,
    data: memoryview | None = None,
) -> Audited:
    """Check a record, whose decoded bytes are ``data``; without them, all but its payload."""
    check_range(spec, reader.size())
    if spec.layout is not None:  # the bytes are the payload alone, without a checksum
        return Audited(item=spec.item, verified_bytes=0, unverifiable_bytes=spec.length)

    def fill(at: int, memory: memoryview) -> None:
        reader.read_into(spec.start + at, [memory])

    raw = RangeFile(spec.length, fill) if data is None else io.BytesIO(data)
    file = io.BufferedReader(raw, BUFFER_BYTES)
    nbytes = spec.length if data is None else len(data)
    if isinstance(found, Unsupported):
        checked = check_entries(file, nbytes)
        return Audited(
            item=spec.item,
            verified_bytes=checked.verified_bytes,
            unverifiable_bytes=checked.unverifiable_bytes,
            is_compared=spec.kind == "bytes",
        )
    head = raw.read(found.start)
    raw.seek(found.end)
    tail = raw.read(nbytes - found.end)
    crc, verified_bytes, unverifiable_bytes = None, 0, 0
    cached = layouts.find(spec.wanted, nbytes, None)
    if cached is not None and cached.tail is not None and cached.head == head:
        crc, verified_bytes = cached.tail.payload_crc(tail), cached.around_bytes
    if crc is None:
        checked = check_entries(file, nbytes, payload_start=found.start)
        crc = _payload_crc(reader.context.format, found, tail, checked)
        layouts.learn_archive(spec, found, head, tail, checked)
        verified_bytes, unverifiable_bytes = checked.verified_bytes, checked.unverifiable_bytes
    payload = replace(found, crc=crc, trailer=None) if crc else None
    if payload is None:
        unverifiable_bytes += found.payload_bytes
    elif data is not None:
        verified_bytes += check_payload(reader.context.format, payload, data)
        payload = None
    return Audited(
        item=spec.item,
        verified_bytes=verified_bytes,
        unverifiable_bytes=unverifiable_bytes,
        payload=payload,
    )


def _payload_crc(fmt: ItemFormat, found: TensorRecord, tail: bytes, checked: Directory) -> int:
    """The CRC-32 that both header (or descriptor) and directory give; 0 if none was written."""
    crc = found.crc or 0
    if found.trailer is not None:
        start, end = (at - found.end for at in found.trailer)
        crc = trailer_crc(fmt, tail[start:end], found.payload_bytes)
    if checked.payload is None:
        raise FormatError("the archive's directory lacks the payload", hint=DAMAGED_HINT)
    if {checked.payload.file_size, checked.payload.compress_size} != {found.payload_bytes}:
        raise FormatError(
            "the archive's directory gives the payload another length",
            expected=f"{found.payload_bytes} bytes",
            got=f"{checked.payload.file_size}, {checked.payload.compress_size} compressed",
            hint=DAMAGED_HINT,
        )
    if crc != checked.payload.CRC:
        raise FormatError(
            "the archive's directory gives the payload another CRC-32",
            expected=f"CRC-32 {crc:08x}",
            got=f"{checked.payload.CRC:08x}",
            hint=DAMAGED_HINT,
        )
    return crc
