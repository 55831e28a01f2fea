"""Runs one task, in a thread or in a worker process. Imports no torch.

      ReadTask ---> run_task(task, work, sink) ---> TaskResult
                       |            |
                  source, format    where bytes land: the targets' own memory (threads)
                  decoders, hooks   or a slot of shared memory (processes)

An error fails its item, and not the others of the task. No ``Exception`` leaves this module.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Final

from paraload.core.checksum import crc32
from paraload.core.records import TensorRecord
from paraload.core.results import Failed, Landed, LandedItems, Located, Outcome, TaskResult
from paraload.core.tasks import (
    DISCARDED,
    LocateTask,
    ReadTask,
    RecordSpec,
    RecordsTask,
    RunsTask,
    SharedTask,
)
from paraload.formats import Unsupported
from paraload.formats.record_checks import (
    check_crc,
    check_range,
    check_stored,
    trailer_crc,
)
from paraload.geometry.runs import Run, plan_reads
from paraload.geometry.strided_copy import gather, is_gathered, pick
from paraload.planning.read_tasks import runs_tasks
from paraload.sources import Read, SourceLimits
from paraload.workers.audit import audit_record
from paraload.workers.read_context import ReadContext, TaskReader, failures, item_error
from paraload.workers.records import (
    Result,
    find_payload,
    guarded,
    joined,
    read_records,
    read_streams,
)
from paraload.workers.sinks import TargetSink as Sink

#: With a checksum, bytes are read in pieces that are still in the processor's cache when they are
#: summed. Shorter pieces cost more than they gain, since threads wait for the GIL at each of them.
#: Of 64 KiB to 16 MiB, 2 and 4 MiB were the fastest.
CHECKED_READ_BYTES: Final = 4 << 20

ReadInto = Callable[[int, Sequence[memoryview]], None]
Found = TensorRecord | Unsupported


def run_task(task: ReadTask, context: ReadContext, sink: Sink) -> TaskResult:
    started_s = time.monotonic()
    reader = TaskReader(context, task.path)
    outcomes: Sequence[Result]
    match task:
        case LocateTask():
            known: dict[object, Found] = {}
            locate = partial(_locate, reader, sink, known=known, at_once_bytes=task.at_once_bytes)
            outcomes = joined(guarded(spec, locate, spec) for spec in task.specs)
        case RecordsTask(as_stream=True):
            outcomes = read_streams(task, reader, sink)
        case RecordsTask():
            outcomes = read_records(task, reader, sink)
        case RunsTask():
            outcomes = tuple(_read_parts([task], reader, sink))
        case SharedTask():
            parts, same_rows = task.parts, task.same_rows
            outcomes = tuple(_read_parts(parts, reader, sink, same_rows=same_rows))
        case _:
            raise TypeError(f"unknown task: {type(task).__name__}")
    return TaskResult(
        task=task,
        outcomes=tuple(outcomes),
        tally=reader.tally,
        started_s=started_s,
        ended_s=time.monotonic(),
        worker=threading.current_thread().name,
    )


def _locate(
    reader: TaskReader,
    sink: Sink,
    spec: RecordSpec,
    known: dict[object, Found],
    *,
    at_once_bytes: int,
) -> Result:
    """Find a payload, and read short ones; ``known`` are those of the task's other items."""
    key = spec.kind, spec.start, spec.end
    found = known.get(key)
    if found is None:
        check_range(spec, reader.size())
        found = find_payload(reader, spec, partial(_read, reader, spec.start), spec.length)
        known[key] = found
    elif isinstance(found, TensorRecord):
        check_stored(spec, found.dtype, found.shape)
    if reader.context.audit:
        return audit_record(reader, sink.layouts, spec, found)
    if isinstance(found, Unsupported):
        return Located(item=spec.item, record=None, reason=found.reason)
    if at_once_bytes:
        landed = _read_located(reader, sink, spec, found, at_once_bytes)
        if landed is not None:
            return landed
    return Located(item=spec.item, record=found)


def _read_located(
    reader: TaskReader, sink: Sink, spec: RecordSpec, record: TensorRecord, at_once_bytes: int
) -> LandedItems | None:
    """Read an item straight into its target, and check it.

    ``None`` if it cannot go there, or spans more than ``at_once_bytes`` of its record, as a slice
    of a transposed tensor does.
    """
    target = sink.targets.get(spec.item)
    if target is None or (runs := target.runs(spec, record)) is None:
        return None
    if sum(run.count * max(run.nbytes, run.src_step) for run in runs) > at_once_bytes:
        return None
    context = reader.context
    nbytes = sum(run.total_bytes for run in runs)
    is_whole = nbytes == record.payload_bytes
    may_check = context.verify and context.format.has_checksum
    verified_bytes = 0
    for task in runs_tasks(  # one, or none for a slice without elements
        spec,
        record,
        runs,
        target=spec.item,
        checksum=may_check and is_whole,
        with_trailer=True,
        split_bytes=sys.maxsize,
        max_gap_bytes=reader.limits.max_gap_bytes,
    ):
        landed = _read_runs(task, target.memory, runs, reader)
        if (crc := landed.crc) is not None:
            verified_bytes = check_crc(record, landed.expected_crc, lambda: crc)
    return LandedItems(
        (spec.item,),
        nbytes,
        verified_bytes=verified_bytes,
        unverified=int(nbytes > 0 and not verified_bytes),
        reason="read in part" if may_check and not is_whole else "",
    )


def _read(reader: TaskReader, start: int, nbytes: int) -> bytes:
    data = bytearray(nbytes)
    reader.read_into(start, [memoryview(data)])
    return bytes(data)


def _read_parts(
    parts: Sequence[RunsTask], reader: TaskReader, sink: Sink, *, same_rows: bool = False
) -> Iterator[Outcome]:
    """An outcome for each part, in order."""
    if same_rows:
        try:
            yield from _read_same_rows(parts, reader, sink)
        except Exception as error:  # noqa: BLE001 - becomes the failure of each item
            yield from _failures(error, parts)
        return
    for part in parts:
        try:
            yield _read_runs(part, *sink.memory(part), reader)
        except Exception as error:  # noqa: BLE001 - the other parts can still be read
            yield from _failures(error, [part])


def _failures(error: Exception, parts: Sequence[RunsTask]) -> list[Failed]:
    failure = item_error(error)
    start, end = min(part.start for part in parts), max(part.end for part in parts)
    failure.locate(path=parts[0].path, start=start, end=end)
    return failures(failure, [item for part in parts for item in part.items])


def _read_runs(
    task: RunsTask, memory: memoryview, runs: tuple[Run, ...], reader: TaskReader
) -> Landed:
    expected = None
    if task.trailer is None or not task.checksum:
        crc = _read_into(task, runs, memory, reader)
    else:
        start, end = task.trailer
        trailer = bytearray(end - start)
        crc = _read_into(task, runs, memory, reader, Read(start, (memoryview(trailer),)))
        expected = trailer_crc(reader.context.format, bytes(trailer), start - task.base)
    return Landed(
        item=task.items[0],
        nbytes=task.needed_bytes,
        src=task.runs[0].src if task.runs else 0,
        crc=crc if task.checksum else None,
        expected_crc=expected,
    )


def _read_same_rows(parts: Sequence[RunsTask], reader: TaskReader, sink: Sink) -> list[Landed]:
    wanted = [(run, memory) for memory, (run,) in map(sink.memory, parts)]
    base = parts[0].base
    if not pick(wanted, reader.read_rows, base):
        gather(wanted, reader.read_into, base, least_bytes=reader.limits.efficient_bytes)
    return [
        Landed(item=part.items[0], nbytes=part.needed_bytes, src=part.runs[0].src) for part in parts
    ]


def _read_into(
    task: RunsTask,
    runs: tuple[Run, ...],
    memory: memoryview,
    reader: TaskReader,
    trailer: Read | None = None,
) -> int:
    """Read every run to its place, and the trailer.

    Returns:
        The CRC-32 of the bytes of all runs in order, if asked for.
    """
    crc = 0
    step = reader.limits.max_request_bytes
    if task.checksum and reader.limits.requests_in_flight is None:  # elsewhere, requests cost more
        step = min(step, CHECKED_READ_BYTES)

    def read(start: int, buffers: Sequence[memoryview]) -> None:
        nonlocal crc, trailer
        if trailer is not None and _is_one_request(start, buffers, trailer, reader.limits):
            reader.read_into(start, (*buffers, *trailer.buffers))
            trailer = None
        else:
            reader.read_into(start, buffers)
        if task.checksum:
            for buffer in buffers:
                crc = crc32(buffer, crc)

    _read_all(task, runs, memory, reader, step, read)
    if trailer is not None:
        reader.read_into(*trailer)
    return crc


def _is_one_request(
    start: int, buffers: Sequence[memoryview], following: Read, limits: SourceLimits
) -> bool:
    """Whether ``following`` should come with the buffers, which end where it starts."""
    end = start + sum(map(len, buffers))
    nbytes = sum(map(len, following.buffers))
    return (
        limits.requests_in_flight is not None
        and end == following.start
        and end + nbytes - start <= limits.max_request_bytes
        and len(buffers) + len(following.buffers) <= limits.max_buffers
    )


def _read_all(
    task: RunsTask,
    runs: tuple[Run, ...],
    memory: memoryview,
    reader: TaskReader,
    step: int,
    read: ReadInto,
) -> None:
    if len(runs) == 1 and runs[0].count == 1:
        _read_straight(task, runs[0], memory, step, read)
        return
    if not task.checksum:
        runs = tuple(run for run in runs if not pick([(run, memory)], reader.read_rows, task.base))
    for gathered, group in groupby(runs, key=lambda run: is_gathered(run, task.max_gap_bytes)):
        if gathered:
            for run in group:
                least_bytes = reader.limits.efficient_bytes
                gather([(run, memory)], read, task.base, least_bytes=least_bytes)
        else:
            _scatter(task, tuple(group), memory, reader.limits.max_buffers, step, read)


def _read_straight(task: RunsTask, run: Run, memory: memoryview, step: int, read: ReadInto) -> None:
    """Read one contiguous piece, the usual case, with as little Python as possible between reads.

    While a thread runs Python, no other can return from its system call: at 10 GiB/s that was a
    quarter of the time.
    """
    is_discarded = task.target == DISCARDED
    step = min(step, len(memory)) if is_discarded else step
    for at in range(0, run.nbytes, step):
        dst = 0 if is_discarded else run.dst + at
        read(task.base + run.src + at, (memory[dst : dst + min(step, run.nbytes - at)],))


def _scatter(
    task: RunsTask,
    runs: tuple[Run, ...],
    memory: memoryview,
    max_buffers: int,
    max_read_bytes: int,
    read: ReadInto,
) -> None:
    """Read rows straight to their places, many with one read where gaps are short."""
    gap = memoryview(bytearray(task.max_gap_bytes))
    for start, pieces in plan_reads(
        runs,
        max_gap_bytes=task.max_gap_bytes,
        max_read_bytes=max_read_bytes,
        max_pieces=max_buffers,
    ):
        buffers = [
            gap[:nbytes] if dst is None else memory[dst : dst + nbytes] for dst, nbytes in pieces
        ]
        read(task.base + start, buffers)
