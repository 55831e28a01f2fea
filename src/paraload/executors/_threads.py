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

from paraload._interrupts import interrupts_deferred
from paraload._sink import TargetSink
from paraload._work import Cancelled
from paraload._worker import run_task
from paraload.executors._base import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._sink import TargetMemory
    from paraload._task import ReadTask, TaskResult
    from paraload._work import Work

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
        crew = _Crew(work, TargetSink(targets))
        threads = [
            threading.Thread(target=crew.work_on, name=f"paraload-{n}", daemon=True)
            for n in range(self.workers)
        ]
        try:
            for thread in threads:
                thread.start()
            # Twice the workers: a thread finds its next task before the caller has seen its last.
            yield from drive(feed, 2 * self.workers, crew.tasks.put, crew.wait)
        finally:
            with interrupts_deferred():
                crew.cancelled.set()
                for _ in threads:
                    crew.tasks.put(None)
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()


class _Crew:
    """What the threads of a run share: two queues, and the event that ends them."""

    def __init__(self, work: Work, sink: TargetSink) -> None:
        self.cancelled = threading.Event()
        self.tasks: SimpleQueue[ReadTask | None] = SimpleQueue()
        self._results: SimpleQueue[TaskResult | BaseException] = SimpleQueue()
        self._work = replace(work, is_cancelled=self.cancelled.is_set)
        self._sink = sink

    def work_on(self) -> None:
        """Do tasks until there are no more: the life of one thread."""
        while (task := self.tasks.get()) is not None and not self.cancelled.is_set():
            try:
                self._results.put(run_task(task, self._work, self._sink))
            except Cancelled:
                return
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                self._results.put(error)

    def wait(self) -> TaskResult:
        """The next result, on the caller's thread."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result
