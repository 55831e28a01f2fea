"""The one loop of a load: reserve, submit, collect, commit, aggregate.

    first tasks --+                                      +-- Located --> plan its reads --+
                  v                                      |                                |
    next_task: ready > waiting for memory > first --> executor --> handle(result)         |
                          ^                              |                                |
                          +------------------------------|--------------------------------+
                                                         +-- Landed / Staged / Raw --> complete
                                                         +-- Failed --> collected for the end

All of it runs on the caller's thread. An item is *ordered* when the moment of its commit matters:
under a planner that is not torch's own (strict resolve, copy, commit), and where targets share
memory (the last of the plan must win, as in torch's reader). Ordered items are collected whole and
committed in the order of torch's reader; all others are committed as they complete.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paraload import _destination as destination
from paraload import _geometry as geometry
from paraload._checksum import combined
from paraload._plan import runs_tasks
from paraload._sink import TargetMemory, cut_inside
from paraload._task import (
    Failed,
    Landed,
    LocateTask,
    Located,
    Outcome,
    Raw,
    ReadTask,
    RecordSpec,
    RunsTask,
    Staged,
    TaskResult,
)
from paraload._worker import checksum_mismatch, describe_failure
from paraload.errors import CheckpointReadError, ItemReadError, summarize
from paraload.formats._torch_zip import check_archive
from paraload.progress import ReadProgress
from paraload.report import FileTiming, ReadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload._budget import MemoryBudget
    from paraload._destination import Destination, Staging
    from paraload._worker import Work
    from paraload.executors._base import ReadExecutor
    from paraload.formats._base import TensorRecord

__all__ = ["CompletedItem", "Load"]

logger = logging.getLogger("paraload")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedItem:
    """An item that is read and checked, and now the planner's.

    Exactly one of the last three says where its content is.

    Attributes:
        item: its number in the plan.
        destination: what the planner resolved it to; ``None`` if it has not been asked yet.
        landed: the content is in the destination's tensor already.
        tensor: the content, to be copied into the target; valid only now.
        data: the content of a bytes item; valid only now.
    """

    item: int
    destination: Destination | None = None
    landed: bool = False
    tensor: Any = None
    data: memoryview | None = None


@dataclass(slots=True, kw_only=True)
class _Unit:
    """Memory that collects a part of an item, until torch takes it from there."""

    staging: Staging
    record: TensorRecord | None
    region: geometry.Region | None
    at: geometry.Shape
    lengths: geometry.Shape
    cut: geometry.Shape | None
    tasks_left: int
    cost_bytes: int


@dataclass(slots=True, kw_only=True)
class _Item:
    """An item on its way."""

    spec: RecordSpec
    ordered: bool
    destination: Destination | None
    planned_bytes: int
    tasks_left: int = 0
    record: TensorRecord | None = None
    reason: str = ""
    checksum: bool = False
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    expected_crc: int | None = None
    units: dict[int, _Unit] = field(default_factory=dict)
    failed: bool = False
    done: bool = False
    held: Callable[[], None] | None = None


@dataclass(slots=True)
class _Reservation:
    """Budget that a task of whole records holds until all of its items are done."""

    cost_bytes: int
    items_left: int


@dataclass(order=True, slots=True)
class _Waiting:
    """Work that waits for memory; ``begin`` makes its tasks."""

    rank: tuple[int, ...]
    cost_bytes: int = field(compare=False)
    begin: Callable[[], list[ReadTask]] = field(compare=False)


class Load:
    """One load, from its first tasks to its report.

    Args:
        specs: every item, in the order of the plan.
        first: the tasks that begin the load.
        destinations: by item, for those that were resolved ahead.
        ordered: the items that are committed in the order of torch's reader.
        strict: all of them are, and memory is admitted in that order too.
        work: what workers need.
        budget: staging memory.
        split_bytes: bytes that one task reads of a located record.
        process: hands completed items to the planner.
        on_progress: told after every result.
        path: of the checkpoint, for texts.
        slow_reasons: why nothing of it can go the fast way.
    """

    def __init__(  # noqa: PLR0913 - the parts of a load, each made elsewhere
        self,
        *,
        specs: Sequence[RecordSpec],
        first: Sequence[ReadTask],
        destinations: dict[int, Destination],
        ordered: set[int],
        strict: bool,
        work: Work,
        budget: MemoryBudget,
        split_bytes: int,
        process: Callable[[list[CompletedItem]], None],
        on_progress: Callable[[ReadProgress], object] | None,
        path: str,
        slow_reasons: Sequence[str] = (),
    ) -> None:
        self._work = work
        self._budget = budget
        self._split_bytes = split_bytes
        self._process = process
        self._on_progress = on_progress
        self._path = path
        self._strict = strict
        self._items = {
            spec.item: _Item(
                spec=spec,
                ordered=strict or spec.item in ordered,
                destination=destinations.get(spec.item),
                planned_bytes=_planned_bytes(spec, destinations.get(spec.item)),
            )
            for spec in specs
        }
        self.targets: dict[int, TargetMemory] = {
            number: item.destination.memory
            for number, item in self._items.items()
            if not item.ordered and item.destination is not None and item.destination.memory
        }
        self._names = itertools.count(max(self._items, default=-1) + 1)
        self._file_rank = {path: n for n, path in enumerate(dict.fromkeys(s.path for s in specs))}
        self._turns = deque(
            sorted(
                (number for number, item in self._items.items() if item.ordered),
                key=self._stock_rank,
            )
        )
        self._waiting: list[_Waiting] = []
        self._sequence = itertools.count()
        self._first: deque[ReadTask] = deque()
        for task in first:
            if strict and not isinstance(task, LocateTask):
                self._wait(task.items[0], task.cost_bytes, lambda task=task: [self._hold(task)])
            else:
                self._first.append(task)
        self._ready: deque[ReadTask] = deque()
        self._reservations: dict[int, _Reservation] = {}
        self._in_flight = 0
        self._locates_left = sum(isinstance(task, LocateTask) for task in first)
        self._failures: list[ItemReadError] = []
        self._ledger = _Ledger(self._items, verify=work.verify)
        for reason in slow_reasons:
            self._ledger.fall_back(reason, len(specs))

    # ------------------------------------------------------------------ running

    def run(self, executor: ReadExecutor) -> ReadReport:
        """Run to the end.

        Raises:
            CheckpointReadError: items failed; all that could be read has been.
            Exception: whatever planner or progress hook raised, unchanged.
        """
        with closing(executor.run(self._work, self._next_task, self.targets)) as results:
            for result in results:
                self._in_flight -= 1
                self._handle(result)
                self._tell()
        self._require_everything()
        return self._ledger.report(
            items=len(self._items),
            workers=executor.workers,
            executor=executor.name,
            peak_bytes=self._budget.peak_bytes,
        )

    def _require_everything(self) -> None:
        if self._failures:
            raise summarize(self._failures, items=len(self._items), path=self._path)
        if missing := [item.spec.fqn for item in self._items.values() if not item.done]:
            raise CheckpointReadError(
                f"{len(missing)} items were never read, {missing[0]!r} among them; this is a bug in"
                " paraload, please report it"
            )

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._ledger.snapshot(len(self._items)))

    # ------------------------------------------------------------------ giving tasks

    def _next_task(self) -> ReadTask | None:
        task = self._choose()
        if task is not None:
            self._in_flight += 1
        return task

    def _choose(self) -> ReadTask | None:
        """Reads that have memory, then those that wait for it, then new ground."""
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._strict and self._locates_left:
                return self._first.popleft() if self._first else None
            if self._waiting:
                if self._reserve(self._waiting[0].cost_bytes):
                    self._ready.extend(heapq.heappop(self._waiting).begin())
                    continue
                if self._strict:
                    return None
            if not self._first:
                return None
            if isinstance(self._first[0], LocateTask):
                return self._first.popleft()
            if not self._reserve(self._first[0].cost_bytes):
                return None
            return self._hold(self._first.popleft())

    def _reserve(self, cost_bytes: int) -> bool:
        if self._budget.reserve(cost_bytes):
            return True
        if self._in_flight:
            return False
        # Ordered items that wait for an earlier one hold the budget that it needs.
        self._budget.force(cost_bytes)
        return True

    def _hold(self, task: ReadTask) -> ReadTask:
        reservation = _Reservation(task.cost_bytes, len(task.items))
        for number in task.items:
            self._reservations[number] = reservation
        return task

    def _wait(self, number: int, cost_bytes: int, begin: Callable[[], list[ReadTask]]) -> None:
        rank = self._stock_rank(number) if self._strict else ()
        heapq.heappush(self._waiting, _Waiting((*rank, next(self._sequence)), cost_bytes, begin))

    def _stock_rank(self, number: int) -> tuple[int, int]:
        return self._file_rank[self._items[number].spec.path], number

    # ------------------------------------------------------------------ handling results

    def _handle(self, result: TaskResult) -> None:
        self._ledger.count(result)
        if isinstance(result.task, LocateTask):
            self._locates_left -= 1
        for outcome in result.outcomes:
            self._handle_outcome(result.task, outcome)

    def _handle_outcome(self, task: ReadTask, outcome: Outcome) -> None:
        item = self._items[outcome.item]
        match outcome:
            case Located():
                self._plan_located(item, outcome)
            case Landed() if isinstance(task, RunsTask):
                self._land_part(item, task, outcome)
            case Landed():
                self._ledger.took(outcome.nbytes)
                self._ledger.verified(outcome.verified_bytes, outcome.nbytes)
                self._complete(
                    item,
                    CompletedItem(item=outcome.item, destination=item.destination, landed=True),
                )
            case Staged():
                self._take_staged(item, outcome)
            case Raw():
                self._take_raw(item, outcome)
            case Failed(error=error):
                spec = item.spec
                error.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
                self._fail(item, error)
                if isinstance(task, RunsTask):
                    self._end_part(item, task)
            case _:
                raise TypeError(f"no such outcome: {type(outcome).__name__}")

    def _take_staged(self, item: _Item, staged: Staged) -> None:
        assert isinstance(staged.data, memoryview)
        self._ledger.replan(item, len(staged.data))
        self._ledger.took(len(staged.data))
        self._ledger.verified(staged.verified_bytes, len(staged.data))
        data = self._lasting(item, staged.data)

        def commit() -> None:
            tensor = destination.as_tensor(data, staged.dtype, staged.lengths, staged.order)
            if staged.cut is not None:
                tensor = destination.cut(tensor, staged.cut, item.spec.info.lengths)
            self._hand_over(item, tensor=tensor)

        self._in_turn(item, commit)

    def _take_raw(self, item: _Item, raw: Raw) -> None:
        assert isinstance(raw.data, memoryview)
        self._ledger.replan(item, len(raw.data))
        self._ledger.took(len(raw.data))
        self._ledger.verified(raw.verified_bytes, len(raw.data))
        item.reason = raw.reason
        data = self._lasting(item, raw.data)
        self._in_turn(item, lambda: self._hand_over_raw(item, data))

    def _lasting(self, item: _Item, data: memoryview) -> memoryview:
        """``data``, or a copy if it may be needed after the next result has come."""
        is_next = not item.ordered or (self._turns and self._turns[0] == item.spec.item)
        return data if is_next else memoryview(bytes(data))

    # ------------------------------------------------------------------ located records

    def _plan_located(self, item: _Item, located: Located) -> None:
        spec, record = item.spec, located.record
        item.record, item.reason = record, located.reason
        if record is None:
            self._plan_raw(item)
            return
        needed = record.itemsize
        for length in spec.info.lengths:
            needed *= length
        self._ledger.replan(item, needed)
        is_whole = needed == record.payload_bytes
        item.checksum = self._work.verify and is_whole and needed > 0
        if self._work.verify and not is_whole:
            self._ledger.unverified["read in part"] += 1
        target = self.targets.get(spec.item)
        fits = target is not None and target.shape == spec.info.lengths
        runs = target.runs(record, spec.info.storage_offsets) if target and fits else None
        if runs is not None:
            tasks = self._tasks(item, runs, target=spec.item, with_trailer=True)
            item.tasks_left = len(tasks)
            self._ready.extend(tasks)
            if not tasks:
                self._finish_landed(item)
            return
        self._plan_staged(item, record)

    def _tasks(
        self, item: _Item, runs: Sequence[geometry.Run], *, target: int, with_trailer: bool
    ) -> list[RunsTask]:
        return runs_tasks(
            item.spec,
            item.record,
            runs,
            target=target,
            checksum=item.checksum,
            with_trailer=with_trailer and item.checksum,
            split_bytes=self._split_bytes,
        )

    def _plan_raw(self, item: _Item) -> None:
        length = item.spec.length
        self._ledger.replan(item, length)

        def begin() -> list[ReadTask]:
            runs = (geometry.Run(0, 0, length),) if length else ()
            return self._begin_unit(item, None, (), (), runs, length, with_trailer=False)

        item.tasks_left += 1
        self._wait(item.spec.item, length, begin)

    def _plan_staged(self, item: _Item, record: TensorRecord) -> None:
        """Collect the slice in units: all of it where order matters, else in bounded pieces."""
        spec = item.spec
        offsets, lengths = spec.info.storage_offsets, spec.info.lengths
        order = geometry.source_order(record.shape, record.strides)
        blocks = [((0,) * len(lengths), lengths)]
        if not item.ordered:
            region = self._region(record, offsets, lengths)
            widening = max(1, region.nbytes(record.itemsize) // max(1, item.planned_bytes))
            limit = max(1, self._split_bytes // widening)
            blocks = list(
                geometry.split_block(lengths, order, itemsize=record.itemsize, max_bytes=limit)
            )
        item.tasks_left = len(blocks)
        for number, (at, sizes) in enumerate(blocks):
            starts = tuple(o + a for o, a in zip(offsets, at, strict=True))
            region = self._region(record, starts, sizes)
            nbytes = region.nbytes(record.itemsize)
            runs = region.runs(record.strides, record.itemsize, record.first_byte(region.offsets))
            is_last = number == len(blocks) - 1

            def begin(  # noqa: PLR0913, PLR0917 - binds the loop's values
                at: geometry.Shape = at,
                sizes: geometry.Shape = sizes,
                region: geometry.Region = region,
                runs: tuple[geometry.Run, ...] = runs,
                nbytes: int = nbytes,
                is_last: bool = is_last,  # noqa: FBT001
            ) -> list[ReadTask]:
                return self._begin_unit(item, region, at, sizes, runs, nbytes, with_trailer=is_last)

            self._wait(spec.item, nbytes, begin)

    def _region(
        self, record: TensorRecord, offsets: geometry.Shape, lengths: geometry.Shape
    ) -> geometry.Region:
        return geometry.staging_region(
            record.shape, record.strides, offsets, lengths, record.itemsize
        )

    def _begin_unit(  # noqa: PLR0913, PLR0917 - the fields of a unit
        self,
        item: _Item,
        region: geometry.Region | None,
        at: geometry.Shape,
        lengths: geometry.Shape,
        runs: tuple[geometry.Run, ...],
        nbytes: int,
        *,
        with_trailer: bool,
    ) -> list[ReadTask]:
        """Take memory for a unit, and make the tasks that fill it."""
        name = next(self._names)
        staging = destination.Staging(nbytes)
        tasks = self._tasks(item, runs, target=name, with_trailer=with_trailer)
        unit = _Unit(
            staging=staging,
            record=item.record,
            region=region,
            at=at,
            lengths=lengths,
            cut=None,
            tasks_left=len(tasks),
            cost_bytes=nbytes,
        )
        item.units[name] = unit
        self.targets[name] = TargetMemory(memory=staging.memory)
        # The unit was counted as one task until it was known how many it is.
        item.tasks_left += len(tasks) - 1
        if not tasks:
            self._end_unit(item, name)
            self._end_item(item)
        return list(tasks)

    def _land_part(self, item: _Item, task: RunsTask, landed: Landed) -> None:
        self._ledger.took(landed.nbytes)
        if landed.crc is not None:
            item.parts.append((landed.src, landed.nbytes, landed.crc))
        if landed.expected_crc is not None:
            item.expected_crc = landed.expected_crc
        self._end_part(item, task)

    def _end_part(self, item: _Item, task: RunsTask) -> None:
        item.tasks_left -= 1
        unit = item.units.get(task.target)
        if unit is not None:
            unit.tasks_left -= 1
            if not unit.tasks_left:
                self._end_unit(item, task.target)
        self._end_item(item)

    def _end_unit(self, item: _Item, name: int) -> None:
        """A unit is full: copy it on, unless the item is handed over as a whole."""
        if item.ordered or item.record is None:
            return
        unit = item.units.pop(name)
        assert item.destination is not None
        if not item.failed:
            target = item.destination.tensor
            try:
                destination.require_shape(target, item.spec.info.lengths)
                block = destination.cut(target, unit.at, unit.lengths)
                destination.copy_into(block, self._unit_tensor(item, unit))
            except ItemReadError as error:
                self._fail(item, error)
        self._drop_unit(name, unit)

    def _drop_unit(self, name: int, unit: _Unit) -> None:
        del self.targets[name]
        self._budget.release(unit.cost_bytes)

    def _unit_tensor(self, item: _Item, unit: _Unit) -> Any:
        assert unit.record is not None and unit.region is not None
        region = unit.region
        data = unit.staging.memory
        tensor = destination.as_tensor(data, unit.record.dtype, region.lengths, region.order)
        if region.lengths == unit.lengths:
            return tensor
        offsets = item.spec.info.storage_offsets
        inside = tuple(o + a - r for o, a, r in zip(offsets, unit.at, region.offsets, strict=True))
        return destination.cut(tensor, inside, unit.lengths)

    def _end_item(self, item: _Item) -> None:
        """All parts are there: check them, and hand the item over."""
        if item.tasks_left:
            return
        if item.failed:
            self._release_units(item)
            return
        if item.record is None:
            self._finish_raw(item)
        elif item.ordered:
            self._finish_ordered(item)
        else:
            self._finish_landed(item)

    def _finish_landed(self, item: _Item) -> None:
        if self._checks_out(item):
            done = CompletedItem(item=item.spec.item, destination=item.destination, landed=True)
            self._complete(item, done)

    def _finish_ordered(self, item: _Item) -> None:
        if not self._checks_out(item):
            self._release_units(item)
            return

        def commit() -> None:
            ((_, unit),) = item.units.items()
            try:
                self._hand_over(item, tensor=self._unit_tensor(item, unit))
            finally:
                self._release_units(item)

        self._in_turn(item, commit)

    def _finish_raw(self, item: _Item) -> None:
        ((_, unit),) = item.units.items()
        data = unit.staging.memory
        try:
            verified = (check_archive(data) or 0) if self._work.verify else 0
        except ItemReadError as error:
            self._fail(item, error)
            self._release_units(item)
            return
        self._ledger.verified(verified, len(data))

        def commit() -> None:
            try:
                self._hand_over_raw(item, data)
            finally:
                self._release_units(item)

        self._in_turn(item, commit)

    def _release_units(self, item: _Item) -> None:
        for name, unit in item.units.items():
            self._drop_unit(name, unit)
        item.units.clear()

    def _checks_out(self, item: _Item) -> bool:
        """Compare the CRC-32 of all parts with the one that was written."""
        if not item.checksum:
            if not self._work.verify and item.planned_bytes:
                self._ledger.unverified[self._ledger.no_crc_reason] += 1
            return True
        assert item.record is not None
        expected = item.expected_crc if item.expected_crc is not None else item.record.crc
        if not expected:
            self._ledger.unverified[self._ledger.no_crc_reason] += 1
            return True
        got = combined((crc, nbytes) for _, nbytes, crc in sorted(item.parts))
        if got != expected:
            self._fail(item, checksum_mismatch(expected, got))
            return False
        self._ledger.bytes_verified += item.record.payload_bytes
        return True

    # ------------------------------------------------------------------ completing

    def _hand_over_raw(self, item: _Item, data: memoryview) -> None:
        if item.spec.kind == "bytes":
            self._complete(item, CompletedItem(item=item.spec.item, data=data))
            return
        self._ledger.fall_back(item.reason)
        try:
            tensor = destination.load_fallback(data, item.spec, None)
        except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
            spec = item.spec
            failed = describe_failure(
                error,
                item=spec.item,
                fqn=spec.fqn,
                path=spec.path,
                start=spec.start,
                end=spec.end,
            )
            self._fail(item, failed.error)
            return
        self._hand_over(item, tensor=tensor)

    def _hand_over(self, item: _Item, *, tensor: Any) -> None:
        number = item.spec.item
        self._complete(
            item, CompletedItem(item=number, destination=item.destination, tensor=tensor)
        )

    def _in_turn(self, item: _Item, commit: Callable[[], None]) -> None:
        """Commit now, or when all earlier ordered items are done."""
        if not item.ordered:
            commit()
            return
        item.held = commit
        self._take_turns()

    def _take_turns(self) -> None:
        while self._turns:
            item = self._items[self._turns[0]]
            if item.failed:
                self._turns.popleft()
                continue
            if item.held is None:
                return
            commit, item.held = item.held, None
            self._turns.popleft()
            commit()

    def _complete(self, item: _Item, completed: CompletedItem) -> None:
        try:
            self._process([completed])
        except ItemReadError as error:
            self._fail(item, error)
            return
        item.done = True
        self._leave(item)

    def _fail(self, item: _Item, error: ItemReadError) -> None:
        if item.failed:
            return
        spec = item.spec
        error.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
        item.failed = True
        self._failures.append(error)
        self._leave(item)
        if item.ordered:
            self._take_turns()

    def _leave(self, item: _Item) -> None:
        self._ledger.left(item)
        reservation = self._reservations.pop(item.spec.item, None)
        if reservation is not None:
            reservation.items_left -= 1
            if not reservation.items_left:
                self._budget.release(reservation.cost_bytes)


def _planned_bytes(spec: RecordSpec, target: Destination | None) -> int:
    return target.needed_bytes if target is not None else max(spec.length, 0)


class _Ledger:
    """Counts of a load: for the progress hook while it runs, for the report at its end."""

    def __init__(self, items: dict[int, _Item], *, verify: bool) -> None:
        self.no_crc_reason = "no CRC-32 in the file" if verify else "verify=False"
        self._started_s = time.monotonic()
        self._bytes_done = 0
        self._bytes_total = sum(item.planned_bytes for item in items.values())
        self._items_left = Counter(item.spec.path for item in items.values())
        self._items_done = 0
        self._files_done = 0
        self._files_total = len(self._items_left)
        self._reads = 0
        self._bytes_read = 0
        self._files: dict[str, FileTiming] = {}
        self._fallbacks: Counter[str] = Counter()
        self.bytes_verified = 0
        self.unverified: Counter[str] = Counter()

    def count(self, result: TaskResult) -> None:
        """Note what a task has read, and when."""
        self._reads += result.reads
        self._bytes_read += result.bytes_read
        started = result.started_s - self._started_s
        ended = result.ended_s - self._started_s
        nbytes = result.bytes_read
        known = self._files.get(result.task.path)
        if known is not None:
            started, ended = min(started, known.started_s), max(ended, known.ended_s)
            nbytes += known.bytes_read
        self._files[result.task.path] = FileTiming(
            started_s=started, ended_s=ended, bytes_read=nbytes
        )

    def replan(self, item: _Item, nbytes: int) -> None:
        """The item turned out to have ``nbytes``."""
        self._bytes_total += nbytes - item.planned_bytes
        item.planned_bytes = nbytes

    def took(self, nbytes: int) -> None:
        """``nbytes`` have arrived."""
        self._bytes_done += nbytes

    def verified(self, verified_bytes: int, nbytes: int) -> None:
        """Of a record with ``nbytes``, so many were proved right."""
        self.bytes_verified += verified_bytes
        if nbytes and not verified_bytes:
            self.unverified[self.no_crc_reason] += 1

    def fall_back(self, reason: str, items: int = 1) -> None:
        """Items go a slower way; the log says so once for each reason."""
        if reason not in self._fallbacks:
            logger.warning("reading in a slower way: %s", reason)
        self._fallbacks[reason] += items

    def left(self, item: _Item) -> None:
        """The item is done or failed."""
        self._items_done += 1
        path = item.spec.path
        self._items_left[path] -= 1
        self._files_done += not self._items_left[path]

    def snapshot(self, items_total: int) -> ReadProgress:
        """How far it is."""
        return ReadProgress(
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            items_done=self._items_done,
            items_total=items_total,
            files_done=self._files_done,
            files_total=self._files_total,
            seconds=time.monotonic() - self._started_s,
        )

    def report(self, *, items: int, workers: int, executor: str, peak_bytes: int) -> ReadReport:
        """What it was."""
        return ReadReport(
            bytes_needed=self._bytes_done,
            bytes_read=self._bytes_read,
            bytes_verified=self.bytes_verified,
            reads=self._reads,
            items=items,
            files=self._files_total,
            seconds=time.monotonic() - self._started_s,
            workers=workers,
            executor=executor,
            fallbacks=dict(self._fallbacks),
            unverified=dict(self.unverified),
            peak_in_flight_bytes=peak_bytes,
            file_timings=self._files,
        )
