"""Records with a known layout: what was found out for the first holds for all that look the same.

    record --head, length and target are known--> checksums right? --yes--> landed, or audited
       |                                               | no
       `--anything unexpected--------------------------+--> slow path: reports the error, or learns

A model has tens of thousands of small tensors in a handful of layouts. Where is the payload, does
the slice lie inside of it, which run leads into the target, what else is in the archive? All of
that is asked for the first record of a layout alone. For the others, equal bytes before the payload
and right checksums are enough: a quarter of the time for a load, and far less for an audit, which
otherwise takes each archive apart with zipfile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from paraload.core.checksum import crc32
from paraload.core.memory import Layout, TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import LandedItems
from paraload.core.tasks import RecordSpec, RecordsTask, Wanted
from paraload.formats.archive import LOCAL_BYTES, LOCAL_NAMES, Directory
from paraload.workers.read_context import Work

_MAX_LAYOUTS: Final = 4096
#: Torch's tails are of 0.8 KiB.
_MAX_TAIL_BYTES: Final = 16 << 10
#: A header of the zip directory, but for name, extra and comment; and the lengths of these.
_CENTRAL_BYTES: Final = 46
_CENTRAL_NAMES: Final = struct.Struct("<28x3H")
_CRC_IN_CENTRAL: Final = 16
_DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"
_CRC_BYTES: Final = 4


class ArchiveTail(NamedTuple):
    """What is behind the payload in all archives of one layout.

    Only an identity that torch makes of the payload, and the CRC-32s of these two, are each
    record's own: each stands behind the content and once more in the directory.
    """

    mask: int  # of the bytes that are equal in all
    equal: int  # those bytes
    contents: tuple[tuple[int, int, int, int], ...]  # start, end, and where its two CRC-32s are
    payload: tuple[int, int]  # where its two CRC-32s are

    def payload_crc(self, tail: bytes | bytearray) -> int | None:
        """The CRC-32 that the payload has to have; ``None`` if the tail is another, or tells none.

        Masking the whole tail as one number is faster than a regular expression or slices.
        """
        if int.from_bytes(tail, "little") & self.mask != self.equal:
            return None
        for start, end, near, central in self.contents:
            crc = crc32(tail[start:end]).to_bytes(_CRC_BYTES, "little")
            if not crc == tail[near : near + _CRC_BYTES] == tail[central : central + _CRC_BYTES]:
                return None
        near, central = self.payload
        payload_crc = tail[near : near + _CRC_BYTES]
        if payload_crc != tail[central : central + _CRC_BYTES]:
            return None
        return int.from_bytes(payload_crc, "little") or None


class CachedLayout(NamedTuple):
    """Records of one layout, of which the same is wanted, for targets of one layout."""

    wanted: Wanted  # kept, as the target, so that its id stays its own
    target: Layout | None  # None in an audit
    head: bytes  # before the payload
    end: int  # of the payload, relative to the record
    trailer: tuple[int, int] | None = None  # the descriptor behind it, or where it would be
    crc: int | None = None  # of the payload, where the head tells it
    src: int = 0  # first byte of the slice, relative to the payload
    dst: int = 0  # where it goes in the target
    nbytes: int = 0  # of the slice, in one piece on both sides; in an audit, of the record
    tail: ArchiveTail | None = None  # in an audit, what has to be behind the payload
    around_bytes: int = 0  # likewise, of the other entries that have a CRC-32


class LayoutCache:
    """The layouts that a load has met. Threads share it: every step is a single look-up."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], CachedLayout] = {}

    def find(self, wanted: Wanted, nbytes: int, target: Layout | None) -> CachedLayout | None:
        return self._known.get((id(wanted), nbytes, id(target)))

    def learn_target(
        self, spec: RecordSpec, target: TargetMemory, found: TensorRecord, data: memoryview
    ) -> None:
        """``spec``, whose record is ``data``, has just gone into ``target``."""
        runs = target.runs(spec, found)
        if runs is None or len(runs) != 1 or runs[0].count != 1:
            return
        layout = CachedLayout(
            wanted=spec.wanted,
            target=target.layout,
            head=bytes(data[: found.start]),
            end=found.end,
            trailer=found.trailer,
            crc=found.crc,
            src=runs[0].src,
            dst=runs[0].dst,
            nbytes=runs[0].nbytes,
        )
        self._add(layout, len(data))

    def learn_archive(
        self, spec: RecordSpec, found: TensorRecord, head: bytes, tail: bytes, checked: Directory
    ) -> None:
        """The entries in ``head`` and ``tail``, around the payload, are right."""
        known = _archive_tail(tail, found.end, checked)
        if known is None:
            return
        nbytes = found.end + len(tail)
        layout = CachedLayout(
            wanted=spec.wanted,
            target=None,
            head=head,
            end=found.end,
            nbytes=nbytes,
            tail=known,
            around_bytes=checked.verified_bytes,
        )
        self._add(layout, nbytes)

    def _add(self, layout: CachedLayout, nbytes: int) -> None:
        if len(self._known) >= _MAX_LAYOUTS:
            self._known.clear()
        self._known[id(layout.wanted), nbytes, id(layout.target)] = layout


def take_cached(
    task: RecordsTask,
    block: bytearray,
    targets: Mapping[int, TargetMemory],
    layouts: LayoutCache,
    work: Work,
    otherwise: Callable[[RecordSpec], None],
) -> LandedItems:
    """Land, or audit, the records of ``task`` that have a known layout.

    Args:
        task: the records.
        block: the bytes of all of them.
        targets: memory by item.
        layouts: those that are known so far.
        work: of the load.
        otherwise: takes every other record; may learn its layout.
    """
    read_trailer = work.format.read_trailer
    verify = work.verify and work.format.has_checksum
    view = memoryview(block)
    items: list[int] = []
    nbytes = verified_bytes = unverified = 0
    for spec in task.specs:
        at, end = spec.start - task.start, spec.end - task.start
        target = targets.get(spec.item)
        cached = layouts.find(spec.wanted, end - at, None if target is None else target.layout)
        if cached is None or not block.startswith(cached.head, at):
            otherwise(spec)
            continue
        payload = view[at + len(cached.head) : at + cached.end]
        expected = cached.crc if verify else 0
        if cached.tail is not None:
            expected = cached.tail.payload_crc(block[at + cached.end : end])
        elif verify and cached.trailer is not None:
            start, stop = cached.trailer
            expected = read_trailer(view[at + start : min(at + stop, end)], len(payload))
        if expected is None or (expected and crc32(payload) != expected):
            otherwise(spec)
            continue
        if target is not None:
            src, dst = cached.src, cached.dst
            target.memory[dst : dst + cached.nbytes] = payload[src : src + cached.nbytes]
        items.append(spec.item)
        nbytes += cached.nbytes
        if expected:
            verified_bytes += len(payload) + cached.around_bytes
        elif cached.nbytes:
            unverified += 1
    return LandedItems(
        items=tuple(items), nbytes=nbytes, verified_bytes=verified_bytes, unverified=unverified
    )


def _archive_tail(tail: bytes, tail_start: int, checked: Directory) -> ArchiveTail | None:
    """``None`` for an archive that is not as torch writes them, with checksums."""
    is_odd = len(tail) > _MAX_TAIL_BYTES or checked.start < tail_start
    if is_odd or checked.payload is None or checked.unverifiable_bytes:
        return None
    mask = bytearray(b"\xff" * len(tail))
    contents = []
    payload = 0, 0
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
            if info is checked.payload:
                payload = near, central
            else:
                contents.append((start, end, near, central))
    except (struct.error, ValueError):
        return None
    mask_int = int.from_bytes(mask, "little")
    equal = int.from_bytes(tail, "little") & mask_int
    return ArchiveTail(mask_int, equal, tuple(contents), payload)
