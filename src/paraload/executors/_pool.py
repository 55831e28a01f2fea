"""Worker processes by ``multiprocessing.Pool``: the request's simple way."""

from __future__ import annotations

import threading
from contextlib import suppress
from multiprocessing.pool import TERMINATE, Pool
from typing import TYPE_CHECKING, Any, Final

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

#: How long the end of a pool may take: it waits for ever where a worker was ended with a lock.
_PATIENCE_S: Final = 5.0


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
        del orderly
        if self._context.dead_workers():
            self._kill()
        # Every awaited result has arrived, so nothing is lost.
        errors: list[Exception] = []
        ending = threading.Thread(target=self._terminate, args=(errors,), daemon=True)
        try:
            ending.start()
        except RuntimeError:  # the system refuses more threads
            self._terminate(errors)
        else:
            ending.join(_PATIENCE_S)
            while ending.is_alive():
                self._kill()
                ending.join(_PATIENCE_S)
        del self._pool, ending  # with them go semaphores, which the resource tracker waits for
        if errors:
            raise errors[0]

    def _terminate(self, errors: list[Exception]) -> None:
        try:
            self._pool.terminate()
            self._pool.join()
        except Exception as error:  # noqa: BLE001 - raised again on the caller's thread
            errors.append(error)

    def _kill(self) -> None:
        """End all workers, and free the locks of the queues, which terminate() waits for.

        A worker that ends while it reads a task, or writes a result, keeps the lock for ever. None
        is held rightfully now: new workers take longer to start than this.
        """
        self._context.kill()
        for lock in (self._pool._inqueue._rlock, self._pool._outqueue._wlock):  # noqa: SLF001
            with suppress(ValueError):  # it was free
                lock.release()


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
