"""The time line of a load as Chrome trace events, which https://ui.perfetto.dev opens.

    {"traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": ...}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "paraload-0"}},
        {"ph": "X", "name": file, "cat": "read", "ts": us, "dur": us, "pid": 1, "tid": 1,
         "args": {"start": ..., "end": ..., "bytes": ..., "GiB/s": ...}},
        {"ph": "C", "name": "throughput", "ts": us, "pid": 1, "args": {"GiB/s": ...}}],
     "displayTimeUnit": "ms", "otherData": {...}}

Times are microseconds since the load began. The format is described in "Trace Event Format" by
the Chromium project. Pure: it writes no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: A trace has one process, the load.
_PID: Final = 1
#: Fine enough for a screen; finer steps show single tasks, which have their own tracks.
_STEPS: Final = 200
_US: Final = 1e6
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTiming:
    """One task of a worker: what it read, and when, in seconds since the load began.

    Attributes:
        worker: name of the thread or process. The caller's own thread may read too.
        path: the file, relative to the checkpoint.
        start: first byte of the range that the task worked on.
        end: one past the last byte of the range.
        bytes_read: bytes read. They are fewer than the range where only headers were read, and a
            few more where the task also read the checksum behind a record.
        started_s: when the task began.
        ended_s: when it ended.
        tasks: how many tasks this entry stands for. Very long loads join consecutive tasks.
    """

    worker: str
    path: str
    start: int
    end: int
    bytes_read: int
    started_s: float
    ended_s: float
    tasks: int = 1


def trace_of(report: Any) -> dict[str, Any]:
    """All events of a ``ReadReport`` (whose module imports this one), as plain types for JSON."""
    timeline, seconds = report.timeline, report.seconds
    workers = "1 worker" if report.workers == 1 else f"{report.workers} workers"
    name = f"paraload load ({report.executor}, {workers})"
    events = [_event("M", "process_name", args={"name": name})]
    tids = {worker: tid for tid, worker in enumerate(workers_of(timeline), start=1)}
    for worker, tid in tids.items():
        events.append(_event("M", "thread_name", tid=tid, args={"name": worker}))
        events.append(_event("M", "thread_sort_index", tid=tid, args={"sort_index": tid}))
    events += [_span(timing, tids[timing.worker]) for timing in timeline]
    steps = [*throughput_steps(timeline, seconds), (seconds, 0.0)] if timeline else []
    for moment_s, rate in steps:
        args = {"GiB/s": round(rate / _GIB, 3)}
        events.append(_event("C", "throughput", ts=moment_s * _US, args=args))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "seconds": seconds,
            "bytes_needed": report.bytes_needed,
            "bytes_read": report.bytes_read,
            "tasks": report.tasks,
            "tasks_not_shown": report.tasks - sum(timing.tasks for timing in timeline),
        },
    }


def _event(phase: str, name: str, **values: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": _PID, **values}


def workers_of(timeline: Iterable[TaskTiming]) -> list[str]:
    """The names of all workers, with numbers in numerical order."""
    return sorted({timing.worker for timing in timeline}, key=_natural)


def throughput_steps(timeline: Sequence[TaskTiming], seconds: float) -> list[tuple[float, float]]:
    """``(start in seconds, bytes per second)`` of equal steps over the load.

    The bytes of a task count as if they had arrived evenly over its time.
    """
    step_s = seconds / _STEPS
    if step_s <= 0:
        return []
    totals = [0.0] * _STEPS
    for timing in timeline:
        first, last = (
            min(max(int(moment_s / step_s), 0), _STEPS - 1)
            for moment_s in (timing.started_s, timing.ended_s)
        )
        if first == last:
            totals[first] += timing.bytes_read
            continue
        rate = timing.bytes_read / (timing.ended_s - timing.started_s)
        for step in range(first, last + 1):
            start_s = max(timing.started_s, step * step_s)
            totals[step] += rate * (min(timing.ended_s, (step + 1) * step_s) - start_s)
    return [(step * step_s, nbytes / step_s) for step, nbytes in enumerate(totals)]


def _span(timing: TaskTiming, tid: int) -> dict[str, Any]:
    seconds = timing.ended_s - timing.started_s
    rate = timing.bytes_read / seconds / _GIB if seconds > 0 else 0.0
    args = {
        "file": timing.path,
        "start": timing.start,
        "end": timing.end,
        "bytes": timing.bytes_read,
        "GiB/s": round(rate, 3),
    }
    return _event(
        "X",
        timing.path.rpartition("/")[2],
        cat="read",
        ts=timing.started_s * _US,
        dur=seconds * _US,
        tid=tid,
        args=args if timing.tasks == 1 else {**args, "tasks": timing.tasks},
    )


def _natural(name: str) -> tuple[str, int, str]:
    words = name.rstrip("0123456789")
    return words, int(name[len(words) :] or 0), name
