"""One task after the other: the caller waits for each of them.

    caller ---task---> one thread: plain reads      a storage that stands still is an error
       |
       `-----task---> the caller's thread: hooks, streams of another file system

A system call cannot be given a deadline, so plain reads are made by a thread that the caller waits
for. Hooks stay on the caller's thread, where a debugger finds them.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from paraload._daemons import PATIENCE_WITH_STALLED_S, DaemonThreads
from paraload._sink import TargetSink
from paraload._task import RecordsTask
from paraload._worker import run_task
from paraload.executors._base import STUCK, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._work import Work

__all__ = ["SequentialExecutor"]


class SequentialExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` without any concurrency."""

    name = "sequential"
    workers = 1

    def __init__(self) -> None:
        self.downgrades: list[str] = []

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run each task when its result is asked for."""
        sink = TargetSink(targets)
        pending: deque[ReadTask] = deque()
        is_over = threading.Event()
        watched = replace(work, is_cancelled=is_over.is_set)
        limit = 0 if work.stall_timeout_s is None or work.hooks else 1
        with DaemonThreads(
            limit,
            "paraload",
            timeout_s=work.stall_timeout_s,
            patience_s=PATIENCE_WITH_STALLED_S,
        ) as thread:

            def run_next() -> TaskResult:
                task = pending.popleft()
                if isinstance(task, RecordsTask) and task.as_stream:
                    return run_task(task, work, sink)
                held = f"{task.path!r} bytes [{task.start}, {task.end})"
                result: TaskResult = thread.call(
                    lambda: f"this was being read: {held}. {STUCK}", run_task, task, watched, sink
                )
                return result

            try:
                yield from drive(feed, lambda: 1, pending.append, run_next)
            finally:
                is_over.set()
