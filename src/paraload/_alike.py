"""Small records that are alike: what was found out for the first of them holds for all others.

A model has tens of thousands of small tensors, and a handful of layouts. For the first record of
a layout everything is asked: where is the payload, does the slice lie inside of it, which runs lead
into the target? For the others it is enough that the bytes before the payload are the same, and
that the descriptor behind it and the CRC-32 are right: a quarter of the time.

Whatever is not as expected here is left to the general way, which finds out and says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from paraload._checksum import crc32
from paraload._result import LandedItems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from paraload._sink import Layout, TargetMemory
    from paraload._task import RecordSpec, Wanted
    from paraload.formats._base import ItemFormat, TensorRecord

__all__ = ["Alike", "Ways", "land_alike"]

_MAX_KNOWN_WAYS: Final = 4096


class Way(NamedTuple):
    """How the records of a layout, of which the same is wanted, go into targets of a layout.

    Attributes:
        wanted: of the record; kept, so that its ``id`` stays its own.
        layout: of the target; likewise.
        head: the bytes before the payload.
        end: of the payload, relative to the record.
        trailer: the descriptor behind it, or where it would be.
        crc: CRC-32 of the payload, where the head tells it.
        src: first byte of the slice, relative to the payload.
        dst: where it goes in the target.
        nbytes: length of the slice, which is in one piece on both sides.
    """

    wanted: Wanted
    layout: Layout
    head: bytes
    end: int
    trailer: tuple[int, int] | None
    crc: int | None
    src: int
    dst: int
    nbytes: int


class Ways:
    """The ways that a load has learned. Threads share it: every step is a single look-up."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], Way] = {}

    def find(self, spec: RecordSpec, layout: Layout) -> Way | None:
        return self._known.get((id(spec.wanted), spec.end - spec.start, id(layout)))

    def learn(
        self, spec: RecordSpec, target: TargetMemory, found: TensorRecord, data: memoryview
    ) -> None:
        """``spec``, whose record is ``data``, has just gone into ``target``."""
        runs = target.runs(spec, found)
        if runs is None or len(runs) != 1 or runs[0].count != 1:
            return
        if len(self._known) >= _MAX_KNOWN_WAYS:
            self._known.clear()
        way = Way(
            wanted=spec.wanted,
            layout=target.layout,
            head=bytes(data[: found.start]),
            end=found.end,
            trailer=found.trailer,
            crc=found.crc,
            src=runs[0].src,
            dst=runs[0].dst,
            nbytes=runs[0].nbytes,
        )
        self._known[id(spec.wanted), spec.end - spec.start, id(target.layout)] = way


class Alike(NamedTuple):
    """What it takes to put the records of one block where they belong.

    Attributes:
        block: bytes of the file.
        start: where in the file they begin.
        targets: memory by item.
        ways: what the load has learned so far.
        fmt: reads the descriptors behind payloads.
        verify: compare CRC-32s.
    """

    block: bytearray
    start: int
    targets: Mapping[int, TargetMemory]
    ways: Ways
    fmt: ItemFormat
    verify: bool


def land_alike(
    specs: Iterable[RecordSpec], alike: Alike, otherwise: Callable[[RecordSpec], None]
) -> LandedItems:
    """Put the items of ``specs`` into their targets, as long as everything is as it was before.

    Args:
        specs: records in the block.
        alike: the block, and the rest.
        otherwise: takes a record that has to be looked at more closely; may learn a new way.
    """
    block, base, targets, ways, fmt, verify = alike
    view = memoryview(block)
    items: list[int] = []
    nbytes = verified_bytes = unverified = 0
    for spec in specs:
        target = targets.get(spec.item)
        way = ways.find(spec, target.layout) if target is not None else None
        at = spec.start - base
        if target is None or way is None or not block.startswith(way.head, at):
            otherwise(spec)
            continue
        payload = view[at + len(way.head) : at + way.end]
        expected = way.crc if verify else 0
        if verify and way.trailer is not None:
            start, end = way.trailer
            expected = fmt.read_trailer(
                view[at + start : min(at + end, spec.end - base)], len(payload)
            )
        if expected is None or (expected and crc32(payload) != expected):
            otherwise(spec)  # finds the same again, and says so
            continue
        target.memory[way.dst : way.dst + way.nbytes] = payload[way.src : way.src + way.nbytes]
        items.append(spec.item)
        nbytes += way.nbytes
        if expected:
            verified_bytes += len(payload)
        elif way.nbytes:
            unverified += 1
    return LandedItems(
        items=tuple(items), nbytes=nbytes, verified_bytes=verified_bytes, unverified=unverified
    )
