"""A located record on its way: which bytes are read, where they are collected, when they are whole.

    Located --> runs into the target's own memory                          (direct)
            --> runs into units of staging memory --> cut --> target       (staged, in pieces)
            --> one unit with the whole slice, kept until its turn         (ordered)
            --> one unit with the whole record, for torch or load_bytes    (raw)
            --> runs that are summed and forgotten                         (audit)

Lives on the caller's thread. Errors are raised to the engine, which fails the item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from paraload.core.checksum import combined
from paraload.core.memory import TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import Landed
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask
from paraload.destinations import host as destination
from paraload.destinations.base import Copy, Destination, StagingMemory
from paraload.destinations.host import DirectTargets
from paraload.engine.items import Item
from paraload.engine.scheduler import Feed
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import checksum_mismatch, most_bytes
from paraload.geometry import runs as geometry
from paraload.geometry.staging_block import Region, staging_region
from paraload.planning.read_tasks import runs_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What all assemblies of a load share.

    Attributes:
        targets: memory by item or unit; executors see it.
        names: fresh numbers for units.
        feed: takes tasks, and gives memory.
        destination: takes what was collected.
        verify: check records that are read whole.
        audit: read whole payloads, and keep nothing.
        split_bytes: asked with a record, says how many bytes of it a task reads.
        max_gap_bytes: a gap up to this long is read rather than skipped.
        located: tasks that need no memory, for the engine to give to the feed.
        copies: copies that have begun, and the unit that each reads.
    """

    targets: DirectTargets
    names: Iterator[int]
    feed: Feed
    destination: Destination
    verify: bool
    audit: bool
    split_bytes: Callable[[RecordSpec], int]
    max_gap_bytes: int
    located: list[RunsTask] = field(default_factory=list)
    copies: list[PendingCopy] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class PendingCopy:
    """A copy out of a unit of staging memory, which has begun and may not be done."""

    copy: Copy
    assembly: Assembly
    unit: int


@dataclass(slots=True, kw_only=True)
class _Unit:
    """Memory that collects a block of the item's slice; ``region`` of the record fills it."""

    staging: StagingMemory
    nbytes: int
    at: geometry.Shape
    lengths: geometry.Shape
    region: Region | None
    tasks_left: int


@dataclass(slots=True)
class Assembly:
    """One record that is read in parts.

    Attributes:
        item: whose record it is.
        record: where the payload lies; ``None`` reads the whole record, for torch or load_bytes.
        reason: why torch is needed.
        split_bytes: bytes that one task reads.
        tasks_left: tasks that have not come back, those that wait for memory counted as one.
        landed_bytes: of the item's, that have come.
    """

    item: Item
    record: TensorRecord | None
    reason: str
    shop: Workshop
    split_bytes: int
    tasks_left: int = 0
    landed_bytes: int = 0
    _is_whole: bool = False
    _parts: list[tuple[int, int, int]] = field(default_factory=list)
    _expected_crc: int | None = None
    _units: dict[int, _Unit] = field(default_factory=dict)

    @classmethod
    def of(cls, item: Item, record: TensorRecord | None, reason: str, shop: Workshop) -> Assembly:
        """Begin to read the record of ``item``."""
        assembly = cls(item, record, reason, shop, shop.split_bytes(item.spec))
        if record is None:
            assembly._await_record()
        else:
            assembly._is_whole = assembly.needed_bytes == record.payload_bytes
            assembly._plan(record)
        return assembly

    @property
    def needed_bytes(self) -> int:
        """Bytes that the item takes: its slice, the whole record, or a payload to be audited."""
        if self.record is None:
            return self.item.spec.length
        if self.shop.audit:
            return self.record.payload_bytes
        return geometry.block_bytes(self.item.spec.wanted.lengths, self.record.itemsize)

    # ------------------------------------------------------------------ planning

    def _plan(self, record: TensorRecord) -> None:
        spec = self.item.spec
        target = self.shop.targets.get(spec.item)
        if not self.needed_bytes:
            return
        if self.shop.audit:
            runs = (geometry.Run(0, 0, record.payload_bytes),)
            tasks = self._tasks(runs, target=DISCARDED, with_trailer=False)
        elif target is not None and (direct := target.runs(spec, record)) is not None:
            tasks = self._tasks(direct, target=spec.item, with_trailer=True)
        else:
            self._await_units(record)
            return
        self.tasks_left = len(tasks)
        self.shop.located.extend(tasks)

    def _await_units(self, record: TensorRecord) -> None:
        """Collect the slice in units: all of it where order matters, else in bounded pieces."""
        wanted = self.item.spec.wanted
        blocks = [((0,) * len(wanted.lengths), wanted.lengths)]
        if not self.item.ordered:
            blocks = self._blocks(record)
        self.tasks_left = len(blocks)
        for number, (at, lengths) in enumerate(blocks):
            starts = tuple(o + a for o, a in zip(wanted.offsets, at, strict=True))
            region = _region(record, starts, lengths)
            runs = region.runs(record.strides, record.itemsize, record.first_byte(region.offsets))
            is_last = number == len(blocks) - 1
            self._await(runs, at=at, lengths=lengths, region=region, with_trailer=is_last)

    def _blocks(self, record: TensorRecord) -> list[tuple[geometry.Shape, geometry.Shape]]:
        wanted = self.item.spec.wanted
        region = _region(record, wanted.offsets, wanted.lengths)
        widening = max(1, region.nbytes(record.itemsize) // self.needed_bytes)
        order = geometry.source_order(record.shape, record.strides)
        limit = max(1, self.split_bytes // widening)
        return list(
            geometry.split_block(wanted.lengths, order, itemsize=record.itemsize, max_bytes=limit)
        )

    def _await_record(self) -> None:
        length = self.item.spec.length
        if length:
            self.tasks_left = 1
            self._await((geometry.Run(0, 0, length),))

    def _await(
        self,
        runs: Sequence[geometry.Run],
        *,
        at: geometry.Shape = (),
        lengths: geometry.Shape = (),
        region: Region | None = None,
        with_trailer: bool = False,
    ) -> None:
        """Read ``runs`` into a unit as soon as there is memory for it."""
        nbytes = sum(run.total_bytes for run in runs)

        def begin() -> Sequence[RunsTask]:
            self.tasks_left -= 1  # it counted as one until now
            if self.item.is_failed:
                self.shop.feed.release(nbytes)
                return ()
            name = next(self.shop.names)
            staging = self.shop.destination.staging(nbytes)
            tasks = self._tasks(runs, target=name, with_trailer=with_trailer)
            self._units[name] = _Unit(
                staging=staging,
                nbytes=nbytes,
                at=at,
                lengths=lengths,
                region=region,
                tasks_left=len(tasks),
            )
            self.shop.targets.add_unit(name, TargetMemory(staging.memory))
            self.tasks_left += len(tasks)
            return tasks

        self.shop.feed.wait(self.item.spec.item, nbytes, begin)

    def _tasks(
        self, runs: Sequence[geometry.Run], *, target: int, with_trailer: bool
    ) -> list[RunsTask]:
        checksum = self.shop.verify and self._is_whole
        return runs_tasks(
            self.item.spec,
            self.record,
            runs,
            target=target,
            checksum=checksum,
            with_trailer=with_trailer and checksum,
            split_bytes=self.split_bytes,
            max_gap_bytes=self.shop.max_gap_bytes,
        )

    # ------------------------------------------------------------------ collecting

    def land(self, landed: Landed) -> int:
        """A part has come.

        Returns:
            The bytes by which the item is further: rows that were read around a slice do not count.
        """
        if landed.crc is not None:
            self._parts.append((landed.src, landed.nbytes, landed.crc))
        if landed.expected_crc is not None:
            self._expected_crc = landed.expected_crc
        further = min(landed.nbytes, self.needed_bytes - self.landed_bytes)
        self.landed_bytes += further
        return further

    def end_task(self, task: RunsTask) -> None:
        """A task is over, well or not. A unit that is full moves on to its target.

        Raises:
            ItemReadError: the target does not take it.
        """
        self.tasks_left -= 1
        unit = self._units.get(task.target)
        if unit is None:
            return
        unit.tasks_left -= 1
        is_kept = self.record is None or self.item.ordered
        if unit.tasks_left or (is_kept and not self.item.is_failed):
            return
        copy = None
        try:
            if self.record is not None and not self.item.is_failed:
                copy = self._move_on(unit, self.record)
        finally:
            if copy is None:
                self._drop(task.target)
        if copy is not None:
            self.tasks_left += 1
            self.shop.copies.append(PendingCopy(copy, self, task.target))

    def end_copy(self, unit: int) -> None:
        """The copy out of this unit is over, well or not."""
        self.tasks_left -= 1
        self._drop(unit)

    def _move_on(self, unit: _Unit, record: TensorRecord) -> Copy | None:
        if self.item.destination is None:
            raise TypeError("a unit without an order needs a destination")
        target = self.item.destination.tensor
        destination.require_shape(target, self.item.spec.wanted.lengths)
        block = destination.cut(target, unit.at, unit.lengths)
        source = self._block(unit, record)
        return self.shop.destination.copy_into(block, source, item=self.item.spec.item)

    def _block(self, unit: _Unit, record: TensorRecord) -> Any:
        """The unit's block of the slice as a tensor over its memory."""
        if unit.region is None:
            raise TypeError("a unit of a raw record has no block")
        region = unit.region
        tensor = destination.as_tensor(
            unit.staging.memory, record.dtype, region.lengths, region.order
        )
        wanted = self.item.spec.wanted
        starts = tuple(o + a for o, a in zip(wanted.offsets, unit.at, strict=True))
        inside = tuple(s - r for s, r in zip(starts, region.offsets, strict=True))
        return destination.cut(tensor, inside, unit.lengths)

    def _drop(self, name: int) -> None:
        unit = self._units.pop(name)
        self.shop.targets.drop_unit(name)
        self.shop.feed.release(unit.nbytes)

    # ------------------------------------------------------------------ complete

    def check(self) -> tuple[int, str]:
        """Compare the CRC-32 of what was read with the one that was written.

        Returns:
            The bytes that were proved right; and why there are none, if that is special.

        Raises:
            ChecksumMismatchError: they differ.
        """
        if self.record is None:
            limit_bytes = most_bytes(self.item.spec)
            return check_archive(self.raw(), limit_bytes, verify=self.shop.verify), ""
        if not self.shop.verify:
            return 0, ""
        if not self._is_whole:
            return 0, "read in part"
        expected = self._expected_crc if self._expected_crc is not None else self.record.crc
        if not expected:
            return 0, ""
        got = combined((crc, nbytes) for _, nbytes, crc in sorted(self._parts))
        if got != expected:
            raise checksum_mismatch(expected, got)
        return self.record.payload_bytes, ""

    def raw(self) -> memoryview:
        """The whole record; valid until :meth:`release`."""
        for unit in self._units.values():
            return unit.staging.memory
        return memoryview(b"")

    def tensor(self) -> Any:
        """The needed slice of an ordered item; valid until :meth:`release`."""
        if self.record is None:
            raise TypeError("only torch can make a tensor of this record")
        for unit in self._units.values():
            return self._block(unit, self.record)
        wanted = self.item.spec.wanted
        order = tuple(range(len(wanted.lengths)))
        return destination.as_tensor(memoryview(b""), self.record.dtype, wanted.lengths, order)

    def release(self) -> None:
        """Give all memory back."""
        for name in list(self._units):
            self._drop(name)


def _region(record: TensorRecord, offsets: geometry.Shape, lengths: geometry.Shape) -> Region:
    return staging_region(record.shape, record.strides, offsets, lengths, record.itemsize)
