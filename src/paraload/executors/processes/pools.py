"""Pools of worker processes: they start the workers, and carry tasks and results.

"processes"   FuturesPool           concurrent.futures.ProcessPoolExecutor
"pool"        MultiprocessingPool   multiprocessing.Pool
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

_PATIENCE_S: Final = 5.0


class WorkerPool(Protocol):
    """Starts workers and carries tasks to them."""

    def submit(self, task: SlottedTask, done: Callable[[Any], None]) -> None:
        """Run ``task`` in a worker; call ``done`` with its result or its exception."""

    def close(self, *, orderly: bool) -> None:
        """End all workers, which may be busy or dead unless ``orderly``, and all that is left."""


class FuturesPool:
    """:class:`WorkerPool` over ``concurrent.futures``."""

    def __init__(self, mp_context: WorkerContext, workers: int, initargs: tuple[Any, ...]) -> None:
        self._context = mp_context
        self._pool: Any = ProcessPoolExecutor(
            workers, mp_context=mp_context, initializer=start_worker, initargs=initargs
        )
        # By itself the queue starts its thread with the first task, on a thread of the pool, where
        # a refusal by the system goes unnoticed.
        queue = self._pool._call_queue  # noqa: SLF001
        try:
            with queue._notempty:  # noqa: SLF001 - as its put() does
                queue._start_thread()  # noqa: SLF001
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
        manager = self._pool._executor_manager_thread  # noqa: SLF001
        if manager is None or manager.ident is None:
            # It has not started: shutdown() must not join it, and it will not close the queue.
            self._pool._executor_manager_thread = None  # noqa: SLF001
            self._pool._call_queue.close()  # noqa: SLF001
            self._pool._call_queue.join_thread()  # noqa: SLF001
        self._pool.shutdown(wait=True, cancel_futures=not orderly)


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
        """End what the constructor started before it failed."""
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
            handler.join()  # the first handler has ended it
        del self._pool

    def close(self, *, orderly: bool) -> None:
        del orderly
        if self._context.dead_workers():
            self._kill()
        # terminate() waits forever if a worker dies just now and leaves a lock behind.
        watchdog = threading.Timer(_PATIENCE_S, self._kill)
        watchdog.daemon = True
        with suppress(RuntimeError):  # the system refuses more threads
            watchdog.start()
        try:
            self._pool.terminate()
            self._pool.join()
        finally:
            watchdog.cancel()
            if watchdog.ident is not None:
                watchdog.join()
            del self._pool  # and its semaphores, which the resource tracker waits for

    def _kill(self) -> None:
        """End all workers, and free the locks of the queues, which terminate() waits for.

        A worker that ends while it reads a task or writes a result never releases the lock. No live
        worker holds one now: new workers take longer to start than this.
        """
        self._context.kill()
        for lock in (self._pool._inqueue._rlock, self._pool._outqueue._wlock):  # noqa: SLF001
            with suppress(ValueError):  # it was free
                lock.release()
