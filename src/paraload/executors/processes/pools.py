"""Pools of worker processes: they start the workers, and carry tasks and results.

"processes"   FuturesPool           concurrent.futures.ProcessPoolExecutor, the recommended way
"pool"        MultiprocessingPool   multiprocessing.Pool, the simple way
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.pool import TERMINATE, Pool
from typing import Any, Final, Protocol

from paraload.core.results import TaskResult
from paraload.executors.processes.slots import SlottedTask, process_single_file, start_worker
from paraload.executors.processes.spawn import WorkerContext

#: How long the end of a pool may take: it waits for ever where a worker was ended with a lock.
_PATIENCE_S: Final = 5.0


class WorkerPool(Protocol):
    """Starts workers and carries tasks to them."""

    def submit(self, task: SlottedTask, done: Callable[[Any], None]) -> None:
        """Run ``task`` in a worker; ``done`` gets its result, or the exception in its place."""

    def close(self, *, orderly: bool) -> None:
        """End all workers, and everything else that the pool made.

        Unless the end is orderly, workers may be dead or busy, and are killed.
        """


class FuturesPool:
    """:class:`WorkerPool` over ``concurrent.futures``."""

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
        def answer(future: Future[TaskResult | None]) -> None:
            if not future.cancelled():  # cancelled when the run is over
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


class MultiprocessingPool:
    """:class:`WorkerPool` over ``multiprocessing.Pool``."""

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
