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

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from paraload.report import ReadReport, TaskTiming

__all__ = ["throughput_steps", "trace_of", "workers_of"]

#: The load is the only process of its trace; its real number means nothing to a reader.
_PID: Final = 1
#: Fine enough for a screen; finer ones show single tasks, which have tracks of their own.
_STEPS: Final = 200
_US: Final = 1e6
_GIB: Final = 1 << 30


def trace_of(report: ReadReport) -> dict[str, Any]:
    """All events of one load, as plain types for JSON."""
    tids = {worker: tid for tid, worker in enumerate(workers_of(report.timeline), start=1)}
    workers = "1 worker" if report.workers == 1 else f"{report.workers} workers"
    return {
        "traceEvents": list(
            chain(
                _names(f"paraload load ({report.executor}, {workers})", tids),
                (_span(timing, tids[timing.worker]) for timing in report.timeline),
                _counters(report),
            )
        ),
        "displayTimeUnit": "ms",
        "otherData": {
            "seconds": report.seconds,
            "bytes_needed": report.bytes_needed,
            "bytes_read": report.bytes_read,
            "tasks": report.tasks,
            "tasks_not_shown": report.tasks - sum(timing.tasks for timing in report.timeline),
        },
    }


def workers_of(timeline: Iterable[TaskTiming]) -> list[str]:
    """Everybody who has read, by name; numbers in names count as numbers."""
    return sorted({timing.worker for timing in timeline}, key=_natural)


def throughput_steps(timeline: Sequence[TaskTiming], seconds: float) -> list[tuple[float, float]]:
    """``(begin in seconds, bytes a second)`` of equal steps over the load.

    What is known of a task is its time as a whole, so its bytes count as if they had come evenly.
    """
    step_s = seconds / _STEPS
    if step_s <= 0:
        return []
    totals = [0.0] * _STEPS
    for timing in timeline:
        first = _step_at(timing.started_s, step_s)
        last = _step_at(timing.ended_s, step_s)
        rate = timing.bytes_read / max(timing.ended_s - timing.started_s, 1e-9)
        if first == last:
            totals[first] += timing.bytes_read
            continue
        totals[first] += rate * ((first + 1) * step_s - timing.started_s)
        totals[last] += rate * (timing.ended_s - last * step_s)
        for step in range(first + 1, last):
            totals[step] += rate * step_s
    return [(number * step_s, nbytes / step_s) for number, nbytes in enumerate(totals)]


def _step_at(moment_s: float, step_s: float) -> int:
    return min(max(int(moment_s / step_s), 0), _STEPS - 1)


def _names(process: str, tids: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": _PID, "args": {"name": process}}
    for worker, tid in tids.items():
        about = {"ph": "M", "pid": _PID, "tid": tid}
        yield {**about, "name": "thread_name", "args": {"name": worker}}
        yield {**about, "name": "thread_sort_index", "args": {"sort_index": tid}}


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
    return {
        "ph": "X",
        "name": timing.path.rpartition("/")[2],
        "cat": "read",
        "ts": timing.started_s * _US,
        "dur": seconds * _US,
        "pid": _PID,
        "tid": tid,
        "args": args if timing.tasks == 1 else {**args, "tasks": timing.tasks},
    }


def _counters(report: ReadReport) -> Iterator[dict[str, Any]]:
    about = {"ph": "C", "name": "throughput", "pid": _PID}
    for moment_s, rate in throughput_steps(report.timeline, report.seconds):
        yield {**about, "ts": moment_s * _US, "args": {"GiB/s": round(rate / _GIB, 3)}}
    if report.timeline:
        yield {**about, "ts": report.seconds * _US, "args": {"GiB/s": 0.0}}


def _natural(name: str) -> tuple[str, int, str]:
    words = name.rstrip("0123456789")
    digits = name[len(words) :]
    return words, int(digits or 0), name
