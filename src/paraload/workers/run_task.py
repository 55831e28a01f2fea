"""Runs one task: bytes in, bytes out, and every problem tied to its item. Imports no torch.

      ReadTask ---> run_task(task, work, sink) ---> TaskResult
                       |            |
                  source, format    where bytes land: the targets' own memory (threads)
                  decoders, hooks   or a slot of shared memory (processes)

One failing item does not stop the others of its task. Only ``KeyboardInterrupt`` and the like leave
this module as exceptions.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
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
from paraload.formats import Unsupported, locate
from paraload.formats.record_checks import check_range, check_stored, trailer_crc
from paraload.geometry import runs as geometry
from paraload.geometry.strided_copy import gather, is_gathered, pick
from paraload.workers.audit import audit_located
from paraload.workers.read_context import Meter, Work, guarded, item_error
from paraload.workers.records import read_records, read_streams
from paraload.workers.sinks import TargetSink as Sink

#: With a checksum, bytes are read in pieces that are still in the processor's cache when they are
#: summed. Shorter pieces cost more than they gain: threads change places at each of them, and only
#: one of them can be in Python. Of 64 KiB to 16 MiB, 2 and 4 MiB were the fastest.
CHECKED_READ_BYTES: Final = 4 << 20


def run_task(task: ReadTask, work: Work, sink: Sink) -> TaskResult:
    """Do what ``task`` says."""
    started = time.monotonic()
    meter = Meter(work, task.path)
    outcomes: list[Outcome | LandedItems]
    match task:
        case LocateTask():
            known: dict[tuple[int, int], TensorRecord] = {}
            outcomes = [guarded(spec, _locate, meter, sink, spec, known) for spec in task.specs]
        case RecordsTask(as_stream=True):
            outcomes = read_streams(task, meter, sink)
        case RecordsTask():
            outcomes = read_records(task, meter, sink)
        case RunsTask():
            outcomes = [_read_runs(task, meter, sink)]
        case SharedTask():
            outcomes = _read_shared(task, meter, sink)
        case _:
            raise TypeError(f"no such task: {type(task).__name__}")
    return TaskResult(
        task=task,
        outcomes=tuple(outcomes),
        tally=meter.tally,
        started_s=started,
        ended_s=time.monotonic(),
        worker=threading.current_thread().name,
    )


def _locate(
    meter: Meter, sink: Sink, spec: RecordSpec, known: dict[tuple[int, int], TensorRecord]
) -> Outcome:
    """Find the payload of ``spec``; ``known`` are those of the same task that were found before."""
    found: TensorRecord | Unsupported | None = known.get((spec.start, spec.end))
    if found is None:
        check_range(spec, meter.size())
        found = spec.layout
    if found is None:
        found = Unsupported("")
        if spec.kind == "tensor":
            read_head = partial(_read_head, meter, spec)
            head_bytes = meter.limits.head_bytes
            found = locate(meter.work.format, read_head, spec.length, head_bytes)
    if isinstance(found, TensorRecord):
        known[spec.start, spec.end] = found
        check_stored(spec, found.dtype, found.shape)
    if meter.work.audit:
        return audit_located(meter, sink.layouts, spec, found)
    if isinstance(found, Unsupported):
        return Located(item=spec.item, record=None, reason=found.reason)
    return Located(item=spec.item, record=found)


def _read_head(meter: Meter, spec: RecordSpec, nbytes: int) -> bytes:
    head = bytearray(nbytes)
    meter.read_into(spec.start, [memoryview(head)])
    return bytes(head)


def _read_runs(task: RunsTask, meter: Meter, sink: Sink) -> Outcome:
    (item,) = task.items
    try:
        memory, runs = sink.memory(task)
        if task.target == DISCARDED:
            crc = _sum(task, memory, meter)
        else:
            crc = _read_into(task, runs, memory, meter)
        expected = None
        if task.trailer is not None and task.checksum:
            start, end = task.trailer
            trailer = bytearray(end - start)
            meter.read_into(start, [memoryview(trailer)])
            payload_bytes = start - task.base
            expected = trailer_crc(meter.work.format, bytes(trailer), payload_bytes)
    except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
        failure = item_error(error)
        failure.locate(path=task.path, start=task.start, end=task.end)
        return Failed(item=item, error=failure)
    return Landed(
        item=item,
        nbytes=task.needed_bytes,
        src=task.runs[0].src if task.runs else 0,
        crc=crc if task.checksum else None,
        expected_crc=expected,
    )


def _sum(task: RunsTask, scratch: memoryview, meter: Meter) -> int:
    """The CRC-32 of all runs in order, which are read into the same memory again and again."""
    crc = 0
    for run in task.runs:
        start, end = task.base + run.src, task.base + run.src + run.nbytes
        for at in range(start, end, len(scratch)):
            piece = scratch[: end - at]
            meter.read_into(at, (piece,))
            crc = crc32(piece, crc)
    return crc


def _read_shared(task: SharedTask, meter: Meter, sink: Sink) -> list[Outcome | LandedItems]:
    try:
        wanted = []
        for part in task.parts:
            memory, (run,) = sink.memory(part)
            wanted.append((run, memory))
        base = task.parts[0].base
        if not pick(wanted, meter.read_rows, base):
            gather(wanted, meter.read_into, base, least_bytes=meter.limits.efficient_bytes)
    except Exception as error:  # noqa: BLE001 - becomes the failure of each item
        failure = item_error(error)
        failure.locate(path=task.path, start=task.start, end=task.end)
        return [Failed(item=item, error=copy.copy(failure)) for item in task.items]
    return [
        Landed(item=part.items[0], nbytes=part.needed_bytes, src=part.runs[0].src)
        for part in task.parts
    ]


def _read_into(
    task: RunsTask, runs: tuple[geometry.Run, ...], memory: memoryview, meter: Meter
) -> int:
    """Read every run to its place; the CRC-32 of all of them in order, if it is wanted."""
    step = meter.limits.max_request_bytes
    if task.checksum:
        step = min(step, max(CHECKED_READ_BYTES, meter.limits.efficient_bytes))
    if len(runs) == 1 and runs[0].count == 1:
        return _read_straight(task, runs[0], memory, meter, step)
    crc = 0

    def add(data: memoryview) -> None:
        nonlocal crc
        crc = crc32(data, crc)

    seen = add if task.checksum else None
    if seen is None:
        runs = tuple(run for run in runs if not pick([(run, memory)], meter.read_rows, task.base))
    for gathered, group in groupby(runs, key=lambda run: is_gathered(run, task.max_gap_bytes)):
        if gathered:
            for run in group:
                wanted = [(run, memory)]
                least_bytes = meter.limits.efficient_bytes
                gather(wanted, meter.read_into, task.base, seen, least_bytes=least_bytes)
        else:
            _scatter(task, tuple(group), memory, meter, step, seen)
    return crc


def _scatter(
    task: RunsTask,
    runs: tuple[geometry.Run, ...],
    memory: memoryview,
    meter: Meter,
    step: int,
    seen: Callable[[memoryview], None] | None,
) -> None:
    """Read rows straight to their places, many with one read where gaps are short."""
    discard: memoryview | None = None
    for read in geometry.plan_reads(
        runs,
        max_gap_bytes=task.max_gap_bytes,
        max_read_bytes=step,
        max_pieces=meter.limits.max_buffers,
    ):
        buffers = []
        for dst, nbytes in read.pieces:
            if dst is not None:
                buffers.append(memory[dst : dst + nbytes])
                continue
            if discard is None:
                discard = memoryview(bytearray(task.max_gap_bytes))
            buffers.append(discard[:nbytes])
        meter.read_into(task.base + read.start, buffers)
        if seen is not None:
            for buffer in buffers:
                seen(buffer)


def _read_straight(
    task: RunsTask, run: geometry.Run, memory: memoryview, meter: Meter, step: int
) -> int:
    """One piece of bytes: the usual case, and a loop of its own.

    Between two reads there is as little Python as can be: while a thread is in Python no other one
    can leave its system call, and at ten GiB/s that was a quarter of the time.
    """
    crc = 0
    start = task.base + run.src
    for at in range(0, run.nbytes, step):
        piece = memory[run.dst + at : run.dst + min(at + step, run.nbytes)]
        meter.read_into(start + at, (piece,))
        if task.checksum:
            crc = crc32(piece, crc)
    return crc
