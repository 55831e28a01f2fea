"""Worker processes by ``concurrent.futures.ProcessPoolExecutor``: the request's recommended way."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from paraload._shared import SlottedTask, process_single_file, start_worker
from paraload.executors._slotted import run_in_slots_or_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from concurrent.futures import Future

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._spawn import WorkerContext
    from paraload._task import ReadTask
    from paraload._work import Work

__all__ = ["ProcessExecutor"]


class _FuturesPool:
    """:class:`~paraload.executors._slotted.WorkerPool` over ``concurrent.futures``."""

    def __init__(self, mp_context: WorkerContext, workers: int, initargs: tuple[Any, ...]) -> None:
        self._context = mp_context
        self._pool = ProcessPoolExecutor(
            workers, mp_context=mp_context, initializer=start_worker, initargs=initargs
        )
        # The queue would start its thread with the first task, on another thread, where a refusal
        # of the system goes unnoticed.
        queue: Any = self._pool._call_queue  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            with queue._notempty:  # noqa: SLF001 - as its put() does
                queue._start_thread()  # noqa: SLF001 - there is no public way
        except BaseException:
            queue._thread = None  # noqa: SLF001 - a reference cycle would keep the queue alive
            raise

    def submit(self, task: SlottedTask, done: Callable[[Any], None]) -> None:
        def answer(future: Future[TaskResult]) -> None:
            if not future.cancelled():  # then the run is over, and nobody waits
                done(future.exception() or future.result())

        self._pool.submit(process_single_file, task).add_done_callback(answer)

    def close(self, *, orderly: bool) -> None:
        if not orderly:
            self._context.kill()
            self._let_go_of_what_did_not_start()
        self._pool.shutdown(wait=True, cancel_futures=not orderly)

    def _let_go_of_what_did_not_start(self) -> None:
        pool: Any = self._pool
        manager = pool._executor_manager_thread  # noqa: SLF001 - shutdown() would join it
        if manager is None or manager.ident is None:
            pool._executor_manager_thread = None  # noqa: SLF001
            pool._call_queue.close()  # noqa: SLF001 - as the manager does at its end
            pool._call_queue.join_thread()  # noqa: SLF001


class ProcessExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` on ``workers`` processes.

    Args:
        workers: processes.
        slot_bytes: size of each slot of shared memory; a longer result is read by the caller.
    """

    name = "processes"

    def __init__(self, workers: int, slot_bytes: int) -> None:
        self.workers = workers
        self.slot_bytes = slot_bytes
        self.downgrades: list[str] = []

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run tasks in the processes; bytes come back through shared memory."""
        return run_in_slots_or_threads(self, _FuturesPool, work, feed, targets)
