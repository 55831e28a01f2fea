"""Checks a record that nothing is kept of: all of its archive, and what the metadata says of it.

    small, decoded   in memory: header, metadata, every entry of the archive, the payload
    big tensor       head and tail of the archive; the engine has the payload summed in pieces
    big other        through zipfile, which reads the record piece by piece

Runs in workers; no torch.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from paraload.core.records import TensorRecord
from paraload.core.results import Audited
from paraload.core.tasks import RecordSpec
from paraload.errors import DAMAGED_HINT, FormatError
from paraload.formats import ItemFormat, Unsupported, locate
from paraload.formats.archive import check_entries
from paraload.formats.record_checks import check_payload, check_range, check_stored, trailer_crc
from paraload.workers.layout_cache import LayoutCache
from paraload.workers.read_context import Meter


def audit_in_memory(
    meter: Meter, layouts: LayoutCache, spec: RecordSpec, data: memoryview
) -> Audited:
    """Check a whole record, of which ``data`` are the decoded bytes."""
    check_range(spec, meter.size())
    fmt = meter.work.format
    file = io.BytesIO(data)
    if spec.kind == "bytes":
        return _audit_entries(spec, file, len(data))
    found = spec.layout or locate(fmt, lambda nbytes: bytes(data[:nbytes]), len(data))
    if isinstance(found, Unsupported):
        return _audit_entries(spec, file, len(data))
    check_stored(spec, found.dtype, found.shape)
    head, tail = bytes(data[: found.start]), bytes(data[found.end :])
    around = _audit_around(layouts, fmt, spec, found, head, tail, file)
    verified_bytes = around.verified_bytes + check_payload(fmt, found, data)
    return replace(around, verified_bytes=verified_bytes, payload=None)


def audit_located(
    meter: Meter, layouts: LayoutCache, spec: RecordSpec, found: TensorRecord | Unsupported
) -> Audited:
    """Check all of a big record but its payload, without holding it in memory."""
    file = io.BufferedReader(_RecordFile(meter, spec), 1 << 20)
    if isinstance(found, Unsupported):
        return _audit_entries(spec, file, spec.length)
    head, tail = bytearray(found.start), bytearray(spec.length - found.end)
    meter.read_into(spec.start, [memoryview(head)])
    meter.read_into(spec.start + found.end, [memoryview(tail)])
    return _audit_around(layouts, meter.work.format, spec, found, bytes(head), bytes(tail), file)


def _audit_entries(spec: RecordSpec, file: io.BufferedIOBase, nbytes: int) -> Audited:
    """An object, or a tensor that only torch can read."""
    checked = check_entries(file, nbytes)
    return Audited(
        item=spec.item,
        verified_bytes=checked.verified_bytes,
        unverifiable_bytes=checked.unverifiable_bytes,
        is_compared=spec.kind == "bytes",
    )


def _audit_around(
    layouts: LayoutCache,
    fmt: ItemFormat,
    spec: RecordSpec,
    found: TensorRecord,
    head: bytes,
    tail: bytes,
    file: io.BufferedIOBase,
) -> Audited:
    """All entries but the payload, of which directory and descriptor must say the same."""
    crc: int | None = None
    verified_bytes = unverifiable_bytes = 0
    cached = layouts.find(spec.wanted, found.end + len(tail), None)
    if cached is not None and cached.head == head and cached.tail is not None:
        crc = cached.tail.payload_crc(tail)
        verified_bytes = cached.around_bytes
    if crc is None:
        checked = check_entries(file, found.end + len(tail), payload_start=found.start)
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
        layouts.learn_archive(spec, found, head, tail, checked)
        verified_bytes, unverifiable_bytes = checked.verified_bytes, checked.unverifiable_bytes
    return Audited(
        item=spec.item,
        verified_bytes=verified_bytes,
        unverifiable_bytes=unverifiable_bytes + (0 if crc else found.payload_bytes),
        payload=replace(found, crc=crc, trailer=None) if crc else None,
    )


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

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._spec.length - self._at)]
        if view:
            self._meter.read_into(self._spec.start + self._at, [view])
        self._at += len(view)
        return len(view)
