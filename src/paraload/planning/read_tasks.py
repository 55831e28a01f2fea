"""PURE: from the items of a plan to tasks. No I/O, no torch, no clock.

    RecordSpec[]  --by file, by offset-->  first tasks
                                             big plain records      LocateTask (headers)
                                             everything else        RecordsTask (whole records)
    TensorRecord of a big record ---------> RunsTask[] (exact bytes, split over workers)

Small records are read whole, many with one read: finding out where a kilobyte lies costs more than
reading it. Of big ones, exactly the needed bytes are read. If these are few, the task that locates
the record reads them too, straight into their target; otherwise all workers share them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeVar

from paraload.core.records import TensorRecord
from paraload.core.tasks import LocateTask, ReadTask, RecordSpec, RecordsTask, RunsTask, SharedTask
from paraload.geometry import runs as geometry
from paraload.geometry.strided_copy import is_gathered
from paraload.sources import SourceLimits

FirstTask = TypeVar("FirstTask", LocateTask, RecordsTask)

#: The figures behind these sizes are printed by ``python -m benchmarks``.
_BLOCK_BYTES: Final = 4 << 20
_MAX_SPLIT_BYTES: Final = 32 << 20
#: With 1 MiB, one reader of a slow storage was often alone at the end; 64 KiB was no better.
_MIN_SPLIT_BYTES: Final = 256 << 10
#: With 4 MiB, one reader of a slow storage was alone at the end, and loads took 5 % longer.
_AT_ONCE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKnobs:
    """The sizes that planning works with.

    Attributes:
        locate_from_bytes: records at least this long are located before they are read.
        locate_batch: headers that one task reads.
        block_bytes: small records are read in blocks of about this length.
        at_once_bytes: a slice up to this long is read by the task that locates its record.
        max_gap_bytes: gaps up to this long are read and dropped rather than skipped.
        split_bytes: the most bytes of a record that one task reads.
        min_split_bytes: the fewest, unless the record ends.
    """

    locate_from_bytes: int = 256 << 10
    locate_batch: int = 8
    block_bytes: int = _BLOCK_BYTES
    at_once_bytes: int = _AT_ONCE_BYTES
    max_gap_bytes: int = 32 << 10
    split_bytes: int = _MAX_SPLIT_BYTES
    min_split_bytes: int = _MIN_SPLIT_BYTES

    @classmethod
    def of(cls, limits: SourceLimits) -> PlanKnobs:
        """The sizes that suit a storage.

        A record that one efficient request can read is read whole: its header would be another
        request. Where requests wait for a server, headers do not wait for each other. Towards the
        end, shorter requests keep all connections busy: a quarter still transfers longer than it
        waits. What is longer than that is not read at once by one of them.
        """
        efficient, most = limits.efficient_bytes, limits.max_request_bytes
        is_server = limits.requests_in_flight is not None
        min_split_bytes = max(_MIN_SPLIT_BYTES, efficient // 4)
        return cls(
            locate_from_bytes=efficient,
            locate_batch=1 if is_server else 8,
            block_bytes=min(most, max(_BLOCK_BYTES, efficient)),
            at_once_bytes=min_split_bytes if is_server else _AT_ONCE_BYTES,
            max_gap_bytes=limits.max_gap_bytes,
            split_bytes=min(most, _MAX_SPLIT_BYTES),
            min_split_bytes=min_split_bytes,
        )


def split_bytes_for(left_bytes: int, workers: int, limit: int, least: int) -> int:
    """The size of a task, small enough that all workers end at about the same time."""
    return min(limit, max(least, left_bytes // (2 * workers)))


def first_tasks(
    specs: Iterable[RecordSpec],
    *,
    whole: bool = False,
    as_stream: bool = False,
    in_sequence: bool = False,
    in_plan_order: bool = False,
    straight_through: bool = False,
    knobs: PlanKnobs,
) -> list[ReadTask]:
    """The tasks that begin a load.

    Args:
        specs: the items, in the order of the plan.
        whole: a hook or transform needs every record whole.
        as_stream: a hook needs a stream.
        in_sequence: streams of this storage only go forward, so each file has one reader.
        in_plan_order: keep the order of items in a file, rather than the order of bytes.
        straight_through: read each header after the data in front of it: no disk seeks back.
        knobs: sizes.
    """
    by_file: defaultdict[str, list[RecordSpec]] = defaultdict(list)
    for spec in specs:
        by_file[spec.path].append(spec)
    batch = 1 if straight_through else knobs.locate_batch

    def is_located(spec: RecordSpec) -> bool:
        is_big = spec.end - spec.start >= knobs.locate_from_bytes
        return is_big and not whole and not spec.wanted.descriptors

    tasks: list[ReadTask] = []
    for records in by_file.values():
        if not in_plan_order:
            records.sort(key=attrgetter("start"))  # stable: the plan decides between equals
        if as_stream:
            tasks += _stream_tasks(records, knobs, in_sequence=in_sequence)
            continue
        for located, group in groupby(records, key=is_located):
            if located:  # without a read where the layout is known
                tasks += _locate_tasks(group, batch, knobs.at_once_bytes)
            else:
                tasks += _block_tasks(group, knobs)
    return tasks


def _locate_tasks(
    records: Iterable[RecordSpec], batch: int, at_once_bytes: int
) -> Iterator[LocateTask]:
    """At most ``batch`` records in each task, and of those that it reads ``at_once_bytes``.

    Items of one record stay together, so that they can share reads.
    """
    task: list[RecordSpec] = []
    headers = room = limit = 0
    for _, same in groupby(records, key=attrgetter("start", "end")):
        items = list(same)
        nbytes = _rows_bytes(items[0])
        is_read = len(items) == 1 and nbytes <= at_once_bytes
        if task and (headers == batch or is_read != bool(limit) or (is_read and nbytes > room)):
            yield _task(LocateTask, task, at_once_bytes=limit)
            task = []
        if not task:
            headers, room, limit = 0, at_once_bytes, at_once_bytes if is_read else 0
        task += items
        headers += 1
        room -= nbytes
    if task:
        yield _task(LocateTask, task, at_once_bytes=limit)


def _rows_bytes(spec: RecordSpec) -> int:
    """About how many bytes of its record lie between the first and the last row of the slice."""
    stored, lengths = spec.wanted.stored, spec.wanted.lengths
    if stored is None or not lengths or not stored.shape or stored.shape[0] < 1:
        return spec.length
    return spec.length * lengths[0] // stored.shape[0]


def _block_tasks(records: Iterable[RecordSpec], knobs: PlanKnobs) -> Iterator[RecordsTask]:
    block: list[RecordSpec] = []
    start = end = 0
    for spec in records:
        first, last = spec.start, spec.end
        if block and not (
            start <= first <= end + knobs.max_gap_bytes and last - start <= knobs.block_bytes
        ):
            yield _task(RecordsTask, block, (start, end), cost_bytes=end - start)
            block = []
        if not block:
            start = end = first
        block.append(spec)
        if last > end:  # noqa: PLR1730 - max() takes as long as all the rest
            end = last
    if block:
        yield _task(RecordsTask, block, (start, end), cost_bytes=end - start)


def _stream_tasks(
    records: Iterable[RecordSpec], knobs: PlanKnobs, *, in_sequence: bool
) -> Iterator[RecordsTask]:
    """Consecutive records of one file, as many as fit into ``split_bytes``."""
    groups: list[list[RecordSpec]] = []
    room = 0
    for spec in records:
        if not groups or spec.length > room:
            groups.append([])
            room = knobs.split_bytes
        groups[-1].append(spec)
        room -= spec.length
    for group in groups:
        cost_bytes = sum(max(spec.length, 0) for spec in group)
        yield _task(
            RecordsTask, group, cost_bytes=cost_bytes, as_stream=True, in_sequence=in_sequence
        )


def _task(
    kind: type[FirstTask],
    specs: list[RecordSpec],
    span: tuple[int, int] | None = None,
    **fields: Any,
) -> FirstTask:
    start, end = span or (min(spec.start for spec in specs), max(spec.end for spec in specs))
    items = tuple([spec.item for spec in specs])
    return kind(path=specs[0].path, start=start, end=end, items=items, specs=tuple(specs), **fields)


def runs_tasks(
    spec: RecordSpec,
    record: TensorRecord | None,
    runs: Sequence[geometry.Run],
    *,
    target: int,
    checksum: bool,
    with_trailer: bool,
    split_bytes: int,
    max_gap_bytes: int,
) -> list[RunsTask]:
    """The tasks that read ``runs``, which are relative to the payload of one record.

    ``record`` says where the payload lies; ``None`` reads the record itself. With ``checksum``, the
    runs are the whole payload, together with those of the record's other calls; the last of these
    calls is ``with_trailer``.
    """
    base = spec.start + (record.start if record is not None else 0)
    groups = geometry.split_runs(runs, split_bytes)
    tasks = []
    for number, group in enumerate(groups, 1):
        trailer = None
        if with_trailer and checksum and record and record.trailer and number == len(groups):
            # The record bounds the trailer: a smaller descriptor may end the archive.
            start, end = record.trailer
            trailer = (spec.start + start, min(spec.start + end, spec.end))
        last = group[-1]
        task = RunsTask(
            path=spec.path,
            start=base + group[0].src,
            end=base + last.src + (last.count - 1) * last.src_step + last.nbytes,
            items=(spec.item,),
            base=base,
            target=target,
            runs=group,
            max_gap_bytes=max_gap_bytes,
            checksum=checksum,
            trailer=trailer,
        )
        tasks.append(task)
    return tasks


def share_reads(tasks: Iterable[RunsTask], *, limit_bytes: int, split_bytes: int) -> list[ReadTask]:
    """Join tasks that read the same rows for different items, up to ``limit_bytes`` of payload.

    Others of one file are joined up to ``split_bytes`` to be read: handling a task costs 50 us, in
    which the page cache gives half a MiB.
    """
    groups: defaultdict[object, list[RunsTask]] = defaultdict(list)
    for task in tasks:
        groups[_rows_of(task)].append(task)
    shared: list[list[RunsTask]] = []
    for group in groups.values():
        group.sort(key=attrgetter("start"))
        row_end = room = -1
        for task in group:
            run, nbytes = task.runs[0], task.needed_bytes
            if run.src + run.nbytes > row_end or nbytes > room:
                shared.append([])
                row_end, room = run.src + run.src_step, limit_bytes
            shared[-1].append(task)
            room -= nbytes
    joined: list[ReadTask] = []
    small: list[RunsTask] = []
    room = 0
    for parts in shared:
        if len(parts) > 1:
            joined.append(_joined(parts, same_rows=True))
            continue
        nbytes = parts[0].end - parts[0].start
        if small and (nbytes > room or parts[0].path != small[0].path):
            joined.append(_joined(small))
            small = []
        if not small:
            room = split_bytes
        small += parts
        room -= nbytes
    return [*joined, _joined(small)] if small else joined


def _rows_of(task: RunsTask) -> object:
    """Equal for tasks that may read through the same rows."""
    run = task.runs[0]
    if len(task.runs) > 1 or task.checksum or not is_gathered(run, task.max_gap_bytes):
        return id(task)
    return task.path, task.base, run.count, run.src_step


def _joined(parts: list[RunsTask], *, same_rows: bool = False) -> ReadTask:
    if len(parts) == 1:
        return parts[0]
    return SharedTask(
        path=parts[0].path,
        start=parts[0].start,
        end=max(part.end for part in parts),
        items=tuple(part.items[0] for part in parts),
        parts=tuple(parts),
        same_rows=same_rows,
    )
