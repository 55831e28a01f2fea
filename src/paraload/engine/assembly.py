"""A record that is read in parts: which bytes, where they are collected, when they are all there.

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
from functools import partial
from typing import Any, Final

from paraload.core.checksum import combined
from paraload.core.memory import TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import Landed, Raw, Staged
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask
from paraload.destinations.base import Copy, StagingMemory
from paraload.destinations.targets import DirectTargets, require_shape
from paraload.destinations.tensor_memory import as_tensor, cut
from paraload.engine.items import Item
from paraload.engine.scheduler import Scheduler
from paraload.engine.setup import LoadSetup
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import check_crc, most_bytes
from paraload.geometry.runs import Run, Shape, block_bytes, split_block
from paraload.geometry.staging_block import Region, staging_region
from paraload.planning.read_tasks import runs_tasks

_EMPTY: Final = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyContext:
    """What all assemblies of a load share.

    ``located`` collects tasks that need no memory, ``copies`` the unfinished copies out of units.
    ``unit_names`` are numbers that no item has; a task reads ``split_bytes`` of a record.
    """

    setup: LoadSetup
    scheduler: Scheduler
    targets: DirectTargets
    unit_names: Iterator[int]
    verify: bool
    split_bytes: Callable[[RecordSpec], int]
    located: list[RunsTask] = field(default_factory=list)
    copies: dict[int, tuple[Copy, Assembly]] = field(default_factory=dict)


@dataclass(slots=True)
class _Unit:
    """Staging memory that collects ``content`` for ``target``; without one, it is kept."""

    staging: StagingMemory
    content: Staged | Raw
    target: Any
    tasks_left: int


class Assembly:
    """One record that is read in parts; without a ``record``, torch or load_bytes needs it whole.

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
        spec, wanted = item.spec, item.spec.wanted
        self.item = item
        self.content: Staged | Raw | None = None
        self.landed_bytes = self.tasks_left = 0
        self._record, self._context = record, context
        self._units: dict[int, _Unit] = {}
        self._parts: list[tuple[int, int, int]] = []
        self._expected_crc: int | None = None
        if record is None:
            self.needed_bytes = spec.length
        elif context.setup.read_context.audit:
            self.needed_bytes = record.payload_bytes
        else:
            self.needed_bytes = block_bytes(wanted.lengths, record.itemsize)
        is_whole = record is not None and self.needed_bytes == record.payload_bytes
        self._checksum = context.verify and is_whole
        self._split_bytes = context.split_bytes(spec)
        self._tasks = partial(
            runs_tasks,
            spec,
            record,
            checksum=self._checksum,
            split_bytes=self._split_bytes,
            max_gap_bytes=context.setup.read_context.source.limits.max_gap_bytes,
        )
        if record is None:
            self.content = raw = Raw(item=spec.item, data=_EMPTY, reason=reason)
            if spec.length:
                self._await((Run(0, 0, spec.length),), raw)
        elif self.needed_bytes:
            self._plan(record)
        elif item.ordered:
            self.content = self._staged(record, _region(record, wanted.offsets, wanted.lengths))

    def _plan(self, record: TensorRecord) -> None:
        target, context = self.item.spec.item, self._context
        is_audit = context.setup.read_context.audit
        memory = context.targets.get(target)
        if is_audit:
            runs, target = (Run(0, 0, record.payload_bytes),), DISCARDED
        elif memory is None or (runs := memory.runs(self.item.spec, record)) is None:
            self._await_blocks(record)
            return
        tasks = self._tasks(runs, target=target, with_trailer=not is_audit)
        self.tasks_left = len(tasks)
        context.located.extend(tasks)

    def _await_blocks(self, record: TensorRecord) -> None:
        """Collect the slice in units: all of it where order matters, else in bounded pieces."""
        wanted, size, target = self.item.spec.wanted, record.itemsize, None
        region = _region(record, wanted.offsets, wanted.lengths)
        limit = self.needed_bytes
        if not self.item.ordered and self.item.destination is not None:
            target = self.item.destination.tensor
            require_shape(target, wanted.lengths)
            widening = max(1, region.nbytes(size) // self.needed_bytes)
            limit = max(1, self._split_bytes // widening)
        blocks = list(split_block(wanted.lengths, region.order, itemsize=size, max_bytes=limit))
        for number, (at, lengths) in enumerate(blocks, 1):
            starts = tuple(o + a for o, a in zip(wanted.offsets, at, strict=True))
            region = _region(record, starts, lengths)
            inside = tuple(s - r for s, r in zip(starts, region.offsets, strict=True))
            content = self._staged(record, region, (inside, lengths))
            runs = region.runs(record.strides, size, record.first_byte(region.offsets))
            block = None if target is None else cut(target, at, lengths)
            self._await(runs, content, block, with_trailer=number == len(blocks))

    def _staged(
        self,
        record: TensorRecord,
        region: Region,
        cut_out: tuple[Shape, Shape] | None = None,
    ) -> Staged:
        return Staged(
            item=self.item.spec.item,
            data=_EMPTY,
            dtype=record.dtype,
            lengths=region.lengths,
            order=region.order,
            cut=cut_out,
        )

    def _await(
        self,
        runs: Sequence[Run],
        content: Staged | Raw,
        target: Any = None,
        *,
        with_trailer: bool = False,
    ) -> None:
        """Read ``runs`` into a unit as soon as there is memory for it."""
        nbytes = sum(run.total_bytes for run in runs)
        context = self._context

        def begin() -> Sequence[RunsTask]:
            self.tasks_left -= 1
            if self.item.is_failed:
                context.scheduler.release(nbytes)
                return ()
            name, staging = next(context.unit_names), context.setup.destination.staging(nbytes)
            tasks = self._tasks(runs, target=name, with_trailer=with_trailer)
            filled = replace(content, data=staging.memory)
            if target is None:
                self.content = filled
            self._units[name] = _Unit(staging, filled, target, tasks_left=len(tasks))
            context.targets[name] = TargetMemory(staging.memory)
            self.tasks_left += len(tasks)
            return tasks

        self.tasks_left += 1
        context.scheduler.wait(self.item.spec.item, nbytes, begin)

    def land(self, landed: Landed) -> int:
        """A part has come. Return its bytes, without rows that were read around a slice."""
        if landed.crc is not None:
            self._parts.append((landed.src, landed.nbytes, landed.crc))
        if landed.expected_crc is not None:
            self._expected_crc = landed.expected_crc
        nbytes = min(landed.nbytes, self.needed_bytes - self.landed_bytes)
        self.landed_bytes += nbytes
        return nbytes

    def end_task(self, task: RunsTask) -> None:
        """A task has succeeded or failed. The copy out of a full unit begins; it may raise."""
        self.tasks_left -= 1
        if (unit := self._units.get(task.target)) is None:
            return
        unit.tasks_left -= 1
        if unit.tasks_left or (unit.target is None and not self.item.is_failed):
            return
        copy = None
        try:
            if isinstance(unit.content, Staged) and not self.item.is_failed:
                source, item = as_tensor(unit.content), self.item.spec.item
                copy = self._context.setup.destination.copy_into(unit.target, source, item=item)
        finally:
            if copy is None:
                self._drop(task.target)
        if copy is not None:
            self.tasks_left += 1
            self._context.copies[task.target] = copy, self

    def end_copy(self, unit: int) -> None:
        """The copy out of this unit has succeeded or failed."""
        self.tasks_left -= 1
        self._drop(unit)

    def check(self) -> tuple[int, str]:
        """Compare the CRC-32 of what was read with the one that was written.

        Returns:
            How many bytes were compared; and why none were, if there is a special reason.
        """
        verify = self._context.verify
        if isinstance(self.content, Raw):
            limit_bytes = most_bytes(self.item.spec)
            nbytes = check_archive(self.content.data, limit_bytes, verify=verify)
            self.content = replace(self.content, verified_bytes=nbytes)
            return nbytes, ""
        if self._record is None or not self._checksum:
            return 0, "read in part" if verify else ""
        parts = ((crc, nbytes) for _, nbytes, crc in sorted(self._parts))
        return check_crc(self._record, self._expected_crc, lambda: combined(parts)), ""

    def release(self) -> None:
        for name in list(self._units):
            self._drop(name)

    def _drop(self, name: int) -> None:
        unit = self._units.pop(name)
        del self._context.targets[name]
        self._context.scheduler.release(len(unit.staging.memory))


def _region(record: TensorRecord, offsets: Shape, lengths: Shape) -> Region:
    return staging_region(record.shape, record.strides, offsets, lengths, record.itemsize)
