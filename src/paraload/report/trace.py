"""The time line of a load as Chrome trace events, which https://ui.perfetto.dev opens.

    {"traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": ...}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "paraload-0"}},
        {"ph": "X", "name": file, "cat": "read", "ts": us, "dur": us, "pid": 1, "tid": 1,
         "args": {"start": ..., "end": ..., "bytes": ..., "GiB/s": ...}},
        {"ph": "C", "name": "throughput", "ts": us, "pid": 1, "args": {"GiB/s": ...}}],
     "displayTimeUnit": "ms", "otherData": {...}}

Times are microseconds since the load began. Chromium's "Trace Event Format" defines the format.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paraload._text import counted

_PID: Final = 1  # the load is the only process of a trace
_STEPS: Final = 200  # enough for a screen
_US: Final = 1e6
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTiming:
    """One task of a worker: what it read, and when, in seconds since the load began.

    Attributes:
        worker: name of the thread or process; the caller's own thread may read too.
        path: the file, relative to the checkpoint.
        start: first byte of the task's range.
        end: one past its last byte.
        bytes_read: bytes read: fewer than the range if only headers were read, a few more if the
            checksum behind a record was read too.
        started_s: when the task began.
        ended_s: when it ended.
        tasks: number of consecutive tasks that this entry stands for; 1 except in very long loads.
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
    name = f"paraload load ({report.executor}, {counted(report.workers, 'worker')})"
    events = [_event("M", "process_name", args={"name": name})]
    tids = {worker: tid for tid, worker in enumerate(workers_of(timeline), start=1)}
    for worker, tid in tids.items():
        events.append(_event("M", "thread_name", tid=tid, args={"name": worker}))
        events.append(_event("M", "thread_sort_index", tid=tid, args={"sort_index": tid}))
    events += [_span(timing, tids[timing.worker]) for timing in timeline]
    steps = [*throughput_steps(timeline, seconds), (seconds, 0.0)] if timeline else []
    for start_s, rate in steps:
        args = {"GiB/s": round(rate / _GIB, 3)}
        events.append(_event("C", "throughput", ts=start_s * _US, args=args))
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

    def key(name: str) -> tuple[str, int]:
        words = name.rstrip("0123456789")
        return words, int(name[len(words) :] or 0)

    return sorted({timing.worker for timing in timeline}, key=key)


def throughput_steps(timeline: Sequence[TaskTiming], seconds: float) -> list[tuple[float, float]]:
    """``(start in seconds, bytes per second)`` of equal steps over the load.

    The bytes of a task are spread evenly over its time.
    """
    step_s = seconds / _STEPS
    if step_s <= 0:
        return []
    totals = [0.0] * _STEPS
    for timing in timeline:
        first = min(int(timing.started_s / step_s), _STEPS - 1)
        last = min(int(timing.ended_s / step_s), _STEPS - 1)
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
    args: dict[str, Any] = {"file": timing.path, "start": timing.start, "end": timing.end}
    args |= {"bytes": timing.bytes_read, "GiB/s": round(rate, 3)}
    if timing.tasks > 1:
        args["tasks"] = timing.tasks
    times = {"ts": timing.started_s * _US, "dur": seconds * _US}
    return _event("X", timing.path.rpartition("/")[2], cat="read", tid=tid, args=args, **times)
