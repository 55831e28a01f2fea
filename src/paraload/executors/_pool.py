"""Worker processes by ``multiprocessing.Pool``: the request's simple way."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.pool import TERMINATE, Pool
from typing import TYPE_CHECKING, Any

from paraload._shared import SlottedTask, process_single_file, start_worker
from paraload.executors._slotted import run_in_slots_or_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._spawn import WorkerContext
    from paraload._task import ReadTask
    from paraload._work import Work

__all__ = ["PoolExecutor"]


class _MultiprocessingPool:
    """:class:`~paraload.executors._slotted.WorkerPool` over ``multiprocessing.Pool``."""

    def __init__(self, mp_context: WorkerContext, workers: int, initargs: tuple[Any, ...]) -> None:
        self._context = mp_context
        self._pool: Any = Pool.__new__(Pool)  # known, even if its constructor fails halfway
        try:
            Pool.__init__(self._pool, workers, start_worker, initargs, context=mp_context)
        except BaseException:
            self._abandon()
            raise

    def submit(self, task: SlottedTask, done: Callable[[Any], None]) -> None:
        self._pool.apply_async(process_single_file, (task,), callback=done, error_callback=done)

    def _abandon(self) -> None:
        """Clean up a pool whose constructor failed."""
        handlers = [
            thread
            for name in ("_worker_handler", "_task_handler")
            if (thread := getattr(self._pool, name, None)) is not None and thread.ident is not None
        ]
        if handlers:  # the first one would replace workers that end
            handlers[0]._state = TERMINATE  # noqa: SLF001 - as Pool.terminate() does
            self._pool._change_notifier.put(None)  # noqa: SLF001
            handlers[0].join()
        self._context.kill()
        for handler in handlers[1:]:
            handler.join()  # the first handler has told it to end
        del self._pool

    def close(self, *, orderly: bool) -> None:
        if not orderly or self._context.dead_workers():
            # A worker that dies, or that terminate() ends, while it writes a result keeps the lock
            # of the queue, and terminate() waits for it without an end. All of them are ended here,
            # and nothing holds the locks rightfully: new workers take longer to start than this.
            self._context.kill()
            for lock in (self._pool._inqueue._rlock, self._pool._outqueue._wlock):  # noqa: SLF001
                with suppress(ValueError):  # it was free
                    lock.release()
        # Every result that anybody waits for has come, so there is nothing to be lost.
        self._pool.terminate()
        self._pool.join()
        del self._pool  # with it go its semaphores, which the resource tracker waits for


class PoolExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` on a ``multiprocessing.Pool``.

    Args:
        workers: processes.
        slot_bytes: size of each slot of shared memory; a longer result is read by the caller.
    """

    name = "pool"

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
        """Run tasks in the pool; bytes come back through shared memory."""
        return run_in_slots_or_threads(self, _MultiprocessingPool, work, feed, targets)
