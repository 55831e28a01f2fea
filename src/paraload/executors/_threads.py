"""Threads that share the caller's memory: the default, since reads and checksums drop the GIL.

    caller ---tasks (SimpleQueue)---> N threads ---results (SimpleQueue)---> caller

A ``None`` ends a thread. Cancellation is an event that every read looks at first, so that a thread
ends after the read it is in, not after its task.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from paraload._sink import TargetSink
from paraload._task import TaskResult
from paraload._worker import Cancelled, run_task
from paraload.executors._base import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._worker import Work

__all__ = ["ThreadExecutor"]


class ThreadExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` on ``workers`` threads."""

    name = "threads"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run tasks on the threads; bytes land straight in ``targets``."""
        cancelled = threading.Event()
        tasks: SimpleQueue[ReadTask | None] = SimpleQueue()
        results: SimpleQueue[TaskResult | BaseException] = SimpleQueue()
        sink = TargetSink(targets)
        own_work = replace(work, is_cancelled=cancelled.is_set)

        def loop() -> None:
            while (task := tasks.get()) is not None and not cancelled.is_set():
                try:
                    results.put(run_task(task, own_work, sink))
                except Cancelled:
                    return
                except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                    results.put(error)

        def wait() -> TaskResult:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            return result

        threads = [
            threading.Thread(target=loop, name=f"paraload-{n}", daemon=True)
            for n in range(self.workers)
        ]
        try:
            for thread in threads:
                thread.start()
            # Twice the workers: a thread finds its next task before the caller has seen its last.
            yield from drive(feed, 2 * self.workers, tasks.put, wait)
        finally:
            cancelled.set()
            for _ in threads:
                tasks.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
