"""Worker processes that start lean and leave nothing behind.

Workers are spawned, never forked: a fork under a live process group or thread pool can deadlock.
They do not import the caller's ``__main__``, as spawned processes normally do: that costs torch's
two seconds in each and runs an unguarded training script again. Only a hook that is defined in
``__main__`` needs it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context, popen_spawn_posix, resource_tracker, spawn
from types import FunctionType, SimpleNamespace
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from paraload.runtime.interrupts import interrupts_blocked

_POLL_S: Final = 0.01


def _preparation_without_main(name: str) -> dict[str, Any]:
    data = spawn.get_preparation_data(name)
    data.pop("init_main_from_name", None)
    data.pop("init_main_from_path", None)
    return data


#: The standard library's own launch, which has no option for this, with one function replaced.
_launch_without_main: Final = FunctionType(
    popen_spawn_posix.Popen._launch.__code__,  # type: ignore[attr-defined]  # noqa: SLF001
    vars(popen_spawn_posix)
    | {
        "spawn": SimpleNamespace(
            **vars(spawn) | {"get_preparation_data": _preparation_without_main}
        )
    },
)


class _Popen(popen_spawn_posix.Popen):
    """Starts a process that the terminal's Ctrl-C does not reach; kills it if that fails."""

    def _launch(self, process_obj: Any) -> None:
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


class _Process(context.SpawnProcess):
    with_main: bool
    niceness: int

    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:  # noqa: N802 - multiprocessing's name
        return _Popen(process_obj)


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
    """A spawn context that knows the processes and locks that were made with it.

    Args:
        with_main: workers import the main script.
        niceness: by how much the priority of workers is below this process's.
    """

    def __init__(self, *, with_main: bool, niceness: int) -> None:
        super().__init__()
        self._with_main, self._niceness = with_main, niceness
        self.processes: list[Any] = []
        self.locks: WeakSet[Any] = WeakSet()

    def Process(  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        self, *args: Any, **kwargs: Any
    ) -> Any:
        process = _Process(*args, **kwargs)
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
        """The processes that ended by themselves.

        When one worker dies, a pool ends the others by SIGTERM; these are returned only if all
        that ended did so by SIGTERM.

        Args:
            patience_s: how long to wait for one. While another thread collects it, its exit code
                is not known.
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

    def forget_processes(self) -> None:
        """Drop all processes, even those that never started: they hold the locks of queues."""
        while self.processes:
            process = self.processes.pop()
            if process.pid is not None and process.exitcode is not None:
                process.close()


@contextmanager
def worker_context(*, with_main: bool, niceness: int) -> Iterator[WorkerContext]:
    """A :class:`WorkerContext` that leaves no process and no semaphore behind.

    ``multiprocessing`` starts a resource tracker with the first spawned process and keeps it for
    the life of the program. One that was not running before is stopped again, unless the program
    has child processes by now.
    """
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001 - there is no public access
    was_running = tracker._fd is not None  # noqa: SLF001
    mp_context = WorkerContext(with_main=with_main, niceness=niceness)
    try:
        resource_tracker.ensure_running()  # semaphores made without it would not be cleaned up
        yield mp_context
    finally:
        mp_context.forget_processes()
        if mp_context.locks:  # cycles hold them; each is a named semaphore until collected
            gc.collect()
        if not (mp_context.locks or was_running or multiprocessing.active_children()):
            tracker._stop()  # noqa: SLF001
