"""PURE: from the items of a plan to tasks. No I/O, no torch, no clock.

    RecordSpec[]  --by file, by offset-->  first tasks
                                             big plain records      LocateTask (headers)
                                             everything else        RecordsTask (whole records)
    TensorRecord of a big record ---------> RunsTask[] (exact bytes, split over workers)

Small records are read whole, many with one read: finding out where a kilobyte lies costs more than
reading it. Big ones are located first, and then exactly the needed bytes are read, each part by
whoever is free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final, TypedDict

from paraload.core.records import TensorRecord
from paraload.core.tasks import LocateTask, ReadTask, RecordSpec, RecordsTask, RunsTask, SharedTask
from paraload.geometry import runs as geometry
from paraload.geometry.strided_copy import is_gathered
from paraload.sources import SourceLimits

#: The figures behind these sizes are printed by ``python -m benchmarks``.
_BLOCK_BYTES: Final = 4 << 20
_MAX_SPLIT_BYTES: Final = 32 << 20
#: With a MiB the last reader of a slow storage was often alone at the end, for as long as it takes;
#: with 64 KiB they ended no more together than with this.
_MIN_SPLIT_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKnobs:
    """The sizes that planning works with.

    Attributes:
        locate_from_bytes: records at least this long are located before they are read.
        locate_batch: headers that one task reads.
        block_bytes: small records are read in blocks of about this length.
        max_gap_bytes: a gap up to this long is read and thrown away rather than skipped.
        split_bytes: bytes of a record that one task reads at most.
        min_split_bytes: and at least, unless the record ends.
    """

    locate_from_bytes: int = 256 << 10
    locate_batch: int = 8
    block_bytes: int = _BLOCK_BYTES
    max_gap_bytes: int = 32 << 10
    split_bytes: int = _MAX_SPLIT_BYTES
    min_split_bytes: int = _MIN_SPLIT_BYTES

    @classmethod
    def of(cls, limits: SourceLimits) -> PlanKnobs:
        """The sizes that suit a storage.

        A record that one efficient request can read is read whole: its header would be another
        request. Where requests wait for a server, headers do not wait for each other.
        """
        efficient, most = limits.efficient_bytes, limits.max_request_bytes
        return cls(
            locate_from_bytes=efficient,
            locate_batch=8 if limits.requests_in_flight is None else 1,
            block_bytes=min(most, max(_BLOCK_BYTES, efficient)),
            max_gap_bytes=limits.max_gap_bytes,
            split_bytes=min(most, _MAX_SPLIT_BYTES),
            min_split_bytes=max(_MIN_SPLIT_BYTES, efficient),
        )


def split_bytes_for(left_bytes: int, workers: int, limit: int, least: int) -> int:
    """Parts of what is left small enough that all workers end at about the same time."""
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
        as_stream: and it needs a stream.
        in_sequence: streams of this storage only go forward, so each file has one reader.
        in_plan_order: keep the order of items in a file, rather than the order of bytes.
        straight_through: read no header before the data in front of it, so that one reader never
            goes back in a file; a spinning disk pays for each way back.
        knobs: sizes.
    """
    by_file: defaultdict[str, list[RecordSpec]] = defaultdict(list)
    for spec in specs:
        by_file[spec.path].append(spec)
    tasks: list[ReadTask] = []
    for records in by_file.values():
        if not in_plan_order:
            records.sort(key=attrgetter("start"))  # stable: the plan decides between equals
        if as_stream:
            tasks += _stream_tasks(records, knobs, in_sequence=in_sequence)
        else:
            batch = 1 if straight_through else knobs.locate_batch
            tasks += _file_tasks(records, batch, whole=whole, knobs=knobs)
    return tasks


def _file_tasks(
    records: list[RecordSpec], locate_batch: int, *, whole: bool, knobs: PlanKnobs
) -> Iterable[LocateTask | RecordsTask]:
    def is_located(spec: RecordSpec) -> bool:
        is_big = spec.end - spec.start >= knobs.locate_from_bytes
        return is_big and not whole and not spec.wanted.descriptors

    for located, group in groupby(records, key=is_located):
        if located:  # without a read where the layout is known
            yield from _locate_tasks(list(group), locate_batch)
        else:
            yield from _block_tasks(group, knobs)


def _locate_tasks(records: list[RecordSpec], batch: int) -> Iterable[LocateTask]:
    """So many headers for each task; items of one record stay together, so that they can share."""
    group: list[RecordSpec] = []
    headers = 0
    for spec in records:
        is_new = not group or (spec.start, spec.end) != (group[-1].start, group[-1].end)
        if is_new and headers == batch:
            yield LocateTask(**_span(group), specs=tuple(group))
            group, headers = [], 0
        headers += is_new
        group.append(spec)
    yield LocateTask(**_span(group), specs=tuple(group))


def _block_tasks(records: Iterable[RecordSpec], knobs: PlanKnobs) -> Iterable[RecordsTask]:
    block: list[RecordSpec] = []
    start = end = 0
    for spec in records:
        first, last = spec.start, spec.end
        if block and not (
            start <= first <= end + knobs.max_gap_bytes and last - start <= knobs.block_bytes
        ):
            yield _block_task(block, start, end)
            block = []
        if not block:
            start = end = first
        block.append(spec)
        if last > end:  # noqa: PLR1730 - max() takes as long as all the rest
            end = last
    if block:
        yield _block_task(block, start, end)


def _block_task(block: list[RecordSpec], start: int, end: int) -> RecordsTask:
    return RecordsTask(
        path=block[0].path,
        start=start,
        end=end,
        items=tuple([spec.item for spec in block]),
        cost_bytes=end - start,
        specs=tuple(block),
    )


def _stream_tasks(
    records: list[RecordSpec], knobs: PlanKnobs, *, in_sequence: bool
) -> Iterable[RecordsTask]:
    """Consecutive records of one file, so many that a task stays within a block of memory."""
    group: list[RecordSpec] = []
    nbytes = 0
    for spec in records:
        if group and nbytes + spec.length > knobs.split_bytes:
            yield _stream_task(group, in_sequence=in_sequence)
            group, nbytes = [], 0
        group.append(spec)
        nbytes += spec.length
    if group:
        yield _stream_task(group, in_sequence=in_sequence)


def _stream_task(specs: list[RecordSpec], *, in_sequence: bool) -> RecordsTask:
    return RecordsTask(
        **_span(specs),
        cost_bytes=sum(max(spec.length, 0) for spec in specs),
        specs=tuple(specs),
        as_stream=True,
        in_sequence=in_sequence,
    )


class _Span(TypedDict):
    path: str
    start: int
    end: int
    items: tuple[int, ...]


def _span(specs: Sequence[RecordSpec]) -> _Span:
    return {
        "path": specs[0].path,
        "start": min(spec.start for spec in specs),
        "end": max(spec.end for spec in specs),
        "items": tuple(spec.item for spec in specs),
    }


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
    """The tasks that read ``runs`` of one record.

    Args:
        spec: the record.
        record: where its payload lies; ``None`` reads the record itself.
        runs: relative to the payload.
        target: the memory that they land in.
        checksum: the runs, together with those of the record's other calls, are the whole payload.
        with_trailer: the last of these tasks reads the trailer.
        split_bytes: size of a task.
        max_gap_bytes: gaps that are read rather than skipped.
    """
    base = spec.start + (record.start if record is not None else 0)
    groups = geometry.split_runs(runs, split_bytes)
    tasks = []
    for number, group in enumerate(groups):
        trailer = None
        if with_trailer and number == len(groups) - 1 and record is not None and record.trailer:
            # The record bounds the trailer: a smaller descriptor may end the archive.
            start, end = record.trailer
            trailer = (spec.start + start, min(spec.start + end, spec.end))
        last = group[-1]
        end_byte = last.src + (last.count - 1) * last.src_step + last.nbytes
        tasks.append(
            RunsTask(
                path=spec.path,
                start=base + group[0].src,
                end=base + end_byte,
                items=(spec.item,),
                base=base,
                target=target,
                runs=group,
                max_gap_bytes=max_gap_bytes,
                checksum=checksum,
                trailer=trailer,
            )
        )
    return tasks


def share_reads(tasks: Sequence[RunsTask], *, limit_bytes: int) -> list[ReadTask]:
    """Join the tasks that read through the same rows of a record for different items.

    Args:
        tasks: in any order.
        limit_bytes: payload bytes that one task may deliver.
    """
    groups: defaultdict[object, list[RunsTask]] = defaultdict(list)
    for task in tasks:
        groups[_rows_of(task)].append(task)
    shared: list[ReadTask] = []
    for group in groups.values():
        # In the order of columns: each joins the one before, unless it is in another row already.
        parts: list[RunsTask] = []
        nbytes = 0
        for task in sorted(group, key=attrgetter("start")):
            run = task.runs[0]
            if parts and not (
                run.src + run.nbytes <= parts[0].runs[0].src + run.src_step
                and nbytes + task.needed_bytes <= limit_bytes
            ):
                shared.append(_joined(parts))
                parts, nbytes = [], 0
            parts.append(task)
            nbytes += task.needed_bytes
        shared.append(_joined(parts))
    return shared


def _rows_of(task: RunsTask) -> object:
    """Equal for tasks that may read through the same rows."""
    run = task.runs[0]
    if len(task.runs) > 1 or task.checksum or not is_gathered(run, task.max_gap_bytes):
        return id(task)
    return task.path, task.base, run.count, run.src_step


def _joined(parts: list[RunsTask]) -> ReadTask:
    if len(parts) == 1:
        return parts[0]
    return SharedTask(
        path=parts[0].path,
        start=min(part.start for part in parts),
        end=max(part.end for part in parts),
        items=tuple(part.items[0] for part in parts),
        parts=tuple(parts),
    )
