"""Records with a known layout: what was found for the first record holds for all that look alike.

    record --head, length and target are known--> checksums right? --yes--> landed, or audited
       |                                               | no
       `--anything unexpected--------------------------+--> slow path: reports the error, or learns

A model has tens of thousands of small tensors in a handful of layouts. The slow path finds out for
the first record of a layout where the payload lies, which run leads into the target and what else
is in the archive. For the others, equal bytes before the payload and right checksums are enough.
That takes a quarter of the time for a load, and far less for an audit, which otherwise opens each
archive with zipfile.
"""

import struct
from typing import Final, NamedTuple

from paraload.core.checksum import crc32
from paraload.core.memory import Layout, TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.tasks import RecordSpec, Wanted
from paraload.formats.archive import LOCAL_BYTES, LOCAL_NAMES, Directory
from paraload.geometry.runs import Run

_MAX_LAYOUTS: Final = 4096
#: torch's tails have 0.8 KiB.
_MAX_TAIL_BYTES: Final = 16 << 10
#: A header of the zip directory without name, extra and comment; and the lengths of these.
_CENTRAL_BYTES: Final = 46
_CENTRAL_NAMES: Final = struct.Struct("<28x3H")
_CRC_IN_CENTRAL: Final = 16
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_CRC_BYTES: Final = 4


class ArchiveTail(NamedTuple):
    """The bytes behind the payload in all archives of one layout.

    They differ in an identity that torch computes from the payload, and in the CRC-32s of these
    two. Each CRC-32 is in the descriptor behind its content and in the zip directory.
    """

    mask: int  # of the bytes that are equal in all
    equal: int  # those bytes
    #: Start and end (0 for the payload), and where the two CRC-32s are.
    entries: tuple[tuple[int, int, int, int], ...]

    def payload_crc(self, tail: bytes | bytearray) -> int | None:
        """The CRC-32 that the payload must have; ``None`` if ``tail`` is unlike this or has none.

        Masking the whole tail as one number is faster than a regular expression or slices.
        """
        if int.from_bytes(tail, "little") & self.mask != self.equal:
            return None
        payload_crc = None
        for start, end, near, central in self.entries:
            crc = tail[near : near + _CRC_BYTES]
            if crc != tail[central : central + _CRC_BYTES]:
                return None
            if not end:
                payload_crc = int.from_bytes(crc, "little") or None
            elif crc32(tail[start:end]).to_bytes(_CRC_BYTES, "little") != crc:
                return None
        return payload_crc


class CachedLayout(NamedTuple):
    """Records of one layout, the same slice of each, and targets of one layout."""

    wanted: Wanted  # held, like ``target``, so that no other object gets its id
    target: Layout | None  # None in an audit
    head: bytes  # before the payload
    record: TensorRecord
    run: Run  # from the payload into the target; in an audit, the whole record
    tail: ArchiveTail | None = None  # in an audit, what must be behind the payload
    around_bytes: int = 0  # in an audit, bytes of the other entries, all with a CRC-32


class LayoutCache:
    """The layouts that a load has met. Threads share it: every step is a single dict operation."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], CachedLayout] = {}

    def find(self, wanted: Wanted, nbytes: int, target: Layout | None) -> CachedLayout | None:
        return self._known.get((id(wanted), nbytes, id(target)))

    def learn_target(
        self, spec: RecordSpec, target: TargetMemory, found: TensorRecord, data: memoryview
    ) -> None:
        """``spec``, whose record is ``data``, has just gone into ``target``."""
        runs = target.runs(spec, found)
        if runs is not None and len(runs) == 1 and runs[0].count == 1:
            head = bytes(data[: found.start])
            self._add(CachedLayout(spec.wanted, target.layout, head, found, runs[0]), len(data))

    def learn_archive(
        self, spec: RecordSpec, found: TensorRecord, head: bytes, tail: bytes, checked: Directory
    ) -> None:
        """The entries in ``head`` and ``tail``, around the payload, are right."""
        if (known := _archive_tail(tail, found.end, checked)) is not None:
            run, around_bytes = Run(0, 0, found.end + len(tail)), checked.verified_bytes
            layout = CachedLayout(spec.wanted, None, head, found, run, known, around_bytes)
            self._add(layout, run.nbytes)

    def _add(self, layout: CachedLayout, record_bytes: int) -> None:
        if len(self._known) >= _MAX_LAYOUTS:
            self._known.clear()
        self._known[id(layout.wanted), record_bytes, id(layout.target)] = layout


def _archive_tail(tail: bytes, tail_start: int, checked: Directory) -> ArchiveTail | None:
    """``None`` for an archive that is not as torch writes them, with checksums."""
    if len(tail) > _MAX_TAIL_BYTES or checked.start < tail_start:
        return None
    if checked.payload is None or checked.unverifiable_bytes:
        return None
    mask = bytearray(b"\xff" * len(tail))
    entries = []
    at = checked.start - tail_start
    try:
        for info in checked.entries:
            central = at + _CRC_IN_CENTRAL
            at += _CENTRAL_BYTES + sum(_CENTRAL_NAMES.unpack_from(tail, at))
            start = end = 0  # the payload ends where the tail begins
            if info is not checked.payload:
                local = info.header_offset - tail_start
                if local < 0:
                    continue  # in the head, which is compared as a whole
                start = local + LOCAL_BYTES + sum(LOCAL_NAMES.unpack_from(tail, local))
                end = start + info.file_size
            near = tail.index(_DESCRIPTOR_SIGNATURE, end, end + len(_DESCRIPTOR_SIGNATURE))
            near += len(_DESCRIPTOR_SIGNATURE)
            mask[start:end] = bytes(end - start)
            for crc in (near, central):
                mask[crc : crc + _CRC_BYTES] = bytes(_CRC_BYTES)
            entries.append((start, end, near, central))
    except (struct.error, ValueError):
        return None
    mask_int = int.from_bytes(mask, "little")
    return ArchiveTail(mask_int, int.from_bytes(tail, "little") & mask_int, tuple(entries))
