"""A located record on its way: which bytes are read, where they are collected, when they are whole.

    Located --> runs into the target's own memory                          (direct)
            --> runs into units of staging memory --> cut --> target       (staged, in pieces)
            --> one unit with the whole slice, kept until its turn         (ordered)
            --> one unit with the whole record, for torch or load_bytes    (raw)
            --> runs that are summed and dropped                           (audit)

Runs on the caller's thread. Errors are raised to the engine, which fails the item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from paraload.core.checksum import combined
from paraload.core.memory import TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import Cut, Landed, Raw, Staged
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask
from paraload.destinations.base import Copy, StagingMemory
from paraload.destinations.host import DirectTargets, require_shape
from paraload.destinations.tensor_memory import as_tensor, cut
from paraload.engine.items import Item
from paraload.engine.scheduler import Feed
from paraload.engine.setup import LoadSetup
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import checksum_mismatch, most_bytes
from paraload.geometry import runs as geometry
from paraload.geometry.staging_block import Region, staging_region
from paraload.planning.read_tasks import runs_tasks

_EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyContext:
    """What all assemblies of a load share.

    Attributes:
        job: of the load.
        feed: takes tasks, and reserves memory.
        targets: memory by item or unit; executors see it.
        names: fresh numbers for units.
        verify: check records that are read whole.
        split_bytes: how much of a record one task reads.
        located: tasks that need no memory, for the engine to give to the feed.
        copies: unfinished copies by the unit that they read, each with the assembly it is for.
    """

    job: LoadSetup
    feed: Feed
    targets: DirectTargets
    names: Iterator[int]
    verify: bool
    split_bytes: Callable[[RecordSpec], int]
    located: list[RunsTask] = field(default_factory=list)
    copies: dict[int, tuple[Copy, Assembly]] = field(default_factory=dict)


@dataclass(slots=True)
class _Unit:
    """Staging memory that collects ``content``, which belongs at ``at`` in the item's slice."""

    staging: StagingMemory
    nbytes: int
    content: Staged | Raw
    at: geometry.Shape
    tasks_left: int


class Assembly:
    """One record that is read in parts.

    Args:
        item: whose record it is.
        record: where the payload lies; ``None`` reads the whole record, for torch or load_bytes.
        reason: why torch is needed.
        context: of the load.

    Attributes:
        content: what the planner receives, valid until :meth:`release`; ``None`` if the item lands
            in its target.
        needed_bytes: what the item takes: its slice, the whole record, or a payload to be audited.
        landed_bytes: how many of these have come.
        tasks_left: tasks and copies that are not done; a unit that waits for memory counts as one.
    """

    def __init__(
        self, item: Item, record: TensorRecord | None, reason: str, context: AssemblyContext
    ) -> None:
        spec, lengths = item.spec, item.spec.wanted.lengths
        self.item = item
        self.content: Staged | Raw | None = None
        self.landed_bytes = self.tasks_left = 0
        self._record = record
        self._context = context
        self._split_bytes = context.split_bytes(spec)
        self._units: dict[int, _Unit] = {}
        self._is_whole = False
        self._parts: list[tuple[int, int, int]] = []
        self._expected_crc: int | None = None
        if record is None:
            self.needed_bytes = spec.length
            self.content = raw = Raw(item=spec.item, data=_EMPTY, reason=reason)
            if spec.length:
                self._await((geometry.Run(0, 0, spec.length),), raw)
            return
        if context.job.work.audit:
            self.needed_bytes = record.payload_bytes
        else:
            self.needed_bytes = geometry.block_bytes(lengths, record.itemsize)
        self._is_whole = self.needed_bytes == record.payload_bytes
        if item.ordered:
            order = tuple(range(len(lengths)))
            self.content = self._staged(record, lengths, order, Cut((0,) * len(lengths), lengths))
        if self.needed_bytes:
            self._plan(record)

    # ------------------------------------------------------------------ planning

    def _plan(self, record: TensorRecord) -> None:
        item, context = self.item.spec.item, self._context
        is_audit = context.job.work.audit
        memory = context.targets.get(item)
        if is_audit:
            runs, item = (geometry.Run(0, 0, record.payload_bytes),), DISCARDED
        elif memory is None or (runs := memory.runs(self.item.spec, record)) is None:
            self._await_blocks(record)
            return
        tasks = self._tasks(runs, target=item, with_trailer=not is_audit)
        self.tasks_left = len(tasks)
        context.located.extend(tasks)

    def _await_blocks(self, record: TensorRecord) -> None:
        """Collect the slice in units: all of it where order matters, else in bounded pieces."""
        wanted = self.item.spec.wanted
        blocks = [((0,) * len(wanted.lengths), wanted.lengths)]
        if not self.item.ordered:
            blocks = self._blocks(record)
        for number, (at, lengths) in enumerate(blocks):
            starts = tuple(o + a for o, a in zip(wanted.offsets, at, strict=True))
            region = _region(record, starts, lengths)
            inside = tuple(s - r for s, r in zip(starts, region.offsets, strict=True))
            content = self._staged(record, region.lengths, region.order, Cut(inside, lengths))
            runs = region.runs(record.strides, record.itemsize, record.first_byte(region.offsets))
            self._await(runs, content, at=at, with_trailer=number == len(blocks) - 1)

    def _blocks(self, record: TensorRecord) -> list[tuple[geometry.Shape, geometry.Shape]]:
        wanted, itemsize = self.item.spec.wanted, record.itemsize
        region = _region(record, wanted.offsets, wanted.lengths)
        widening = max(1, region.nbytes(itemsize) // self.needed_bytes)
        limit = max(1, self._split_bytes // widening)
        blocks = geometry.split_block(
            wanted.lengths, region.order, itemsize=itemsize, max_bytes=limit
        )
        return list(blocks)

    def _await(
        self,
        runs: Sequence[geometry.Run],
        content: Staged | Raw,
        *,
        at: geometry.Shape = (),
        with_trailer: bool = False,
    ) -> None:
        """Read ``runs`` into a unit as soon as there is memory for it."""
        nbytes = sum(run.total_bytes for run in runs)
        context = self._context

        def begin() -> Sequence[RunsTask]:
            self.tasks_left -= 1
            if self.item.is_failed:
                context.feed.release(nbytes)
                return ()
            name, staging = next(context.names), context.job.destination.staging(nbytes)
            tasks = self._tasks(runs, target=name, with_trailer=with_trailer)
            filled = replace(content, data=staging.memory)
            if self.content is not None:
                self.content = filled
            self._units[name] = _Unit(staging, nbytes, filled, at, tasks_left=len(tasks))
            context.targets[name] = TargetMemory(staging.memory)
            self.tasks_left += len(tasks)
            return tasks

        self.tasks_left += 1
        context.feed.wait(self.item.spec.item, nbytes, begin)

    def _tasks(
        self, runs: Sequence[geometry.Run], *, target: int, with_trailer: bool
    ) -> list[RunsTask]:
        checksum = self._context.verify and self._is_whole
        return runs_tasks(
            self.item.spec,
            self._record,
            runs,
            target=target,
            checksum=checksum,
            with_trailer=with_trailer and checksum,
            split_bytes=self._split_bytes,
            max_gap_bytes=self._context.job.work.source.limits.max_gap_bytes,
        )

    def _staged(
        self, record: TensorRecord, lengths: geometry.Shape, order: geometry.Shape, cut: Cut
    ) -> Staged:
        item, dtype = self.item.spec.item, record.dtype
        return Staged(item=item, data=_EMPTY, dtype=dtype, lengths=lengths, order=order, cut=cut)

    # ------------------------------------------------------------------ collecting

    def land(self, landed: Landed) -> int:
        """A part has come.

        Returns:
            How many more bytes of the item are there. Rows that were read around a slice do not
            count.
        """
        if landed.crc is not None:
            self._parts.append((landed.src, landed.nbytes, landed.crc))
        if landed.expected_crc is not None:
            self._expected_crc = landed.expected_crc
        more = min(landed.nbytes, self.needed_bytes - self.landed_bytes)
        self.landed_bytes += more
        return more

    def end_task(self, task: RunsTask) -> None:
        """A task has succeeded or failed. A full unit is copied into its target.

        Raises:
            ItemReadError: the target does not take it.
        """
        self.tasks_left -= 1
        if (unit := self._units.get(task.target)) is None:
            return
        unit.tasks_left -= 1
        is_failed = self.item.is_failed
        if unit.tasks_left or (self.content is not None and not is_failed):
            return
        copy = None
        try:
            if not is_failed:
                copy = self._begin_copy(unit)
        finally:
            if copy is None:
                self._drop(task.target)
        if copy is not None:
            self.tasks_left += 1
            self._context.copies[task.target] = copy, self

    def _begin_copy(self, unit: _Unit) -> Copy | None:
        if self.item.destination is None or not isinstance(unit.content, Staged):
            raise TypeError("only a part of a tensor with a target can be copied ahead of its turn")
        target, source = self.item.destination.tensor, as_tensor(unit.content)
        require_shape(target, self.item.spec.wanted.lengths)
        block = cut(target, unit.at, tuple(source.shape))
        return self._context.job.destination.copy_into(block, source, item=self.item.spec.item)

    def end_copy(self, unit: int) -> None:
        """The copy out of this unit has succeeded or failed."""
        self.tasks_left -= 1
        self._drop(unit)

    def check(self) -> tuple[int, str]:
        """Compare the CRC-32 of what was read with the one that was written.

        Returns:
            The number of bytes that were compared; and why there are none, if there is a special
            reason.

        Raises:
            ChecksumMismatchError: they differ.
        """
        verify = self._context.verify
        if isinstance(self.content, Raw):
            limit_bytes = most_bytes(self.item.spec)
            verified_bytes = check_archive(self.content.data, limit_bytes, verify=verify)
            self.content = replace(self.content, verified_bytes=verified_bytes)
            return verified_bytes, ""
        if self._record is None or not verify:
            return 0, ""
        if not self._is_whole:
            return 0, "read in part"
        expected = self._expected_crc if self._expected_crc is not None else self._record.crc
        if not expected:
            return 0, ""
        got = combined((crc, nbytes) for _, nbytes, crc in sorted(self._parts))
        if got != expected:
            raise checksum_mismatch(expected, got)
        return self._record.payload_bytes, ""

    def release(self) -> None:
        """Give all memory back."""
        for name in list(self._units):
            self._drop(name)

    def _drop(self, name: int) -> None:
        unit = self._units.pop(name)
        del self._context.targets[name]
        self._context.feed.release(unit.nbytes)


def _region(record: TensorRecord, offsets: geometry.Shape, lengths: geometry.Shape) -> Region:
    return staging_region(record.shape, record.strides, offsets, lengths, record.itemsize)
