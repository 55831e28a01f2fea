"""Worker processes that start lean and leave nothing behind, and the pools that feed them.

"processes"   FuturesPool           concurrent.futures.ProcessPoolExecutor
"pool"        MultiprocessingPool   multiprocessing.Pool

Workers are spawned, never forked: a fork under a live process group or thread pool can deadlock.
They do not import the caller's ``__main__``, as spawned processes normally do: that costs torch's
two seconds in each and runs an unguarded training script again. Only a hook that is defined in
``__main__`` needs it.

``submit`` runs a task in a worker and puts its slot, with the result or the exception, into
``answers``. ``close`` ends all workers; these may be busy or dead unless the end is ``orderly``.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import context, popen_spawn_posix, resource_tracker, spawn
from multiprocessing.pool import TERMINATE, Pool
from queue import SimpleQueue
from types import FunctionType, SimpleNamespace
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from paraload.core.results import TaskResult
from paraload.executors.processes.slots import SlottedTask, process_single_file, start_worker
from paraload.runtime.interrupts import interrupts_blocked

Answers = SimpleQueue[tuple[int, TaskResult | BaseException | None]]

_POLL_S: Final = 0.01
_PATIENCE_S: Final = 5.0


def _preparation_without_main(name: str) -> dict[str, Any]:
    data = spawn.get_preparation_data(name)
    return {key: value for key, value in data.items() if not key.startswith("init_main_from_")}


_spawn_without_main: Final = SimpleNamespace(
    **vars(spawn) | {"get_preparation_data": _preparation_without_main}
)
#: The standard library's own launch, which has no option for this, with one name replaced.
_launch_without_main: Final = FunctionType(
    popen_spawn_posix.Popen._launch.__code__,  # type: ignore[attr-defined]  # noqa: SLF001
    vars(popen_spawn_posix) | {"spawn": _spawn_without_main},
)


class _Popen(popen_spawn_posix.Popen):
    """Starts a process that the terminal's Ctrl-C does not reach; kills it if that fails."""

    def _launch(self, process_obj: Any) -> None:
        del process_obj._Popen  # noqa: SLF001 - or the worker would import this module
        try:
            with interrupts_blocked():
                if process_obj.with_main:
                    super()._launch(process_obj)  # type: ignore[misc]  # unknown to typeshed
                else:
                    _launch_without_main(self, process_obj)
            with suppress(OSError):  # the load is only faster with it
                own = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PROCESS, self.pid, own + process_obj.niceness)
        except BaseException:
            if hasattr(self, "pid"):  # nothing else knows of the process yet
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            raise


class EndedWorker(NamedTuple):
    """A process that has ended; a negative exit code is the signal that ended it."""

    pid: int
    exitcode: int

    def __str__(self) -> str:
        try:
            ending = signal.Signals(-self.exitcode).name
        except ValueError:
            ending = f"exit code {self.exitcode}"
        return f"process {self.pid} ended with {ending}"


class WorkerContext(context.SpawnContext):
    """A spawn context that leaves no process and no semaphore behind when it is closed.

    ``multiprocessing`` starts a resource tracker with the first spawned process and keeps it for
    the life of the program. One that was not running before is stopped again, unless the program
    has child processes by then.

    Args:
        with_main: workers import the main script.
        niceness: by how much the priority of workers is below this process's.
    """

    def __init__(self, *, with_main: bool, niceness: int) -> None:
        super().__init__()
        self._with_main, self._niceness = with_main, niceness
        self.processes: list[Any] = []
        self.locks: WeakSet[Any] = WeakSet()
        self._tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001
        self._tracker_was_running = self._tracker._fd is not None  # type: ignore[attr-defined]  # noqa: SLF001
        resource_tracker.ensure_running()  # semaphores made without it would not be cleaned up

    def Process(  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        self, *args: Any, **kwargs: Any
    ) -> Any:
        process: Any = context.SpawnProcess(*args, **kwargs)
        process._Popen = _Popen  # noqa: SLF001 - what start() calls
        process.with_main, process.niceness = self._with_main, self._niceness
        self.processes.append(process)
        return process

    def Lock(self) -> Any:  # noqa: N802 - multiprocessing's name
        self.locks.add(lock := super().Lock())
        return lock

    def BoundedSemaphore(self, value: int = 1) -> Any:  # noqa: N802 - multiprocessing's name
        self.locks.add(semaphore := super().BoundedSemaphore(value))
        return semaphore

    def dead_workers(self, *, patience_s: float = 0.0) -> list[EndedWorker]:
        """The processes that ended by themselves; waits ``patience_s`` for the first.

        When one worker dies, a pool ends the others by SIGTERM; these are returned only if all
        that ended did so by SIGTERM. A process is missing while another thread collects it.
        """
        until_s = time.monotonic() + patience_s
        while True:
            dead = [
                EndedWorker(process.pid, process.exitcode)
                for process in list(self.processes)
                if process.pid is not None and process.exitcode is not None
            ]
            first = [worker for worker in dead if worker.exitcode != -signal.SIGTERM]
            if first or time.monotonic() >= until_s:
                return first or dead
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """End every worker that has started so far; a pool may be starting others."""
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()

    def close(self) -> None:
        started = [process for process in self.processes if process.pid is not None]
        self.processes.clear()  # those that never started hold the locks of queues
        for process in started:
            if process.exitcode is not None:
                process.close()
        if self.locks:  # cycles hold them; each is a named semaphore until collected
            gc.collect()
        if not (self.locks or self._tracker_was_running or multiprocessing.active_children()):
            self._tracker._stop()  # noqa: SLF001


class FuturesPool:
    def __init__(
        self, mp_context: WorkerContext, workers: int, initargs: tuple[Any, ...], answers: Answers
    ) -> None:
        self._context = mp_context
        self._answers = answers
        self._pool: Any = ProcessPoolExecutor(
            workers, mp_context=mp_context, initializer=start_worker, initargs=initargs
        )
        # By itself the queue starts its thread with the first task, on a thread of the pool, where
        # a refusal by the system goes unnoticed.
        queue = self._pool._call_queue  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            with queue._notempty:  # noqa: SLF001 - as its put() does
                queue._start_thread()  # noqa: SLF001
        except BaseException:
            queue._thread = None  # noqa: SLF001 - a reference cycle would keep the queue alive
            raise

    def submit(self, task: SlottedTask) -> None:
        def answer(future: Future[TaskResult | None]) -> None:
            if not future.cancelled():  # cancelled when the run is over
                self._answers.put((task.slot, future.exception() or future.result()))

        try:
            future = self._pool.submit(process_single_file, task)
        except BrokenExecutor as error:  # a worker died before this task
            self._answers.put((task.slot, error))
        else:
            future.add_done_callback(answer)

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
    def __init__(
        self, mp_context: WorkerContext, workers: int, initargs: tuple[Any, ...], answers: Answers
    ) -> None:
        self._context = mp_context
        self._answers = answers
        self._pool: Any = Pool.__new__(Pool)  # known, even if its constructor fails halfway
        try:
            Pool.__init__(self._pool, workers, start_worker, initargs, context=mp_context)
        except BaseException:
            self._abandon()
            raise

    def submit(self, task: SlottedTask) -> None:
        def answer(result: TaskResult | BaseException | None) -> None:
            self._answers.put((task.slot, result))

        self._pool.apply_async(process_single_file, (task,), callback=answer, error_callback=answer)

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
