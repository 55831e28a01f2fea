"""Worker processes that start lean and leave nothing behind.

Workers are spawned, never forked: a fork under a live process group or thread pool can deadlock.
They do not import the caller's ``__main__``, which a spawned process normally does: that would cost
torch's two seconds in each of them and run an unguarded training script again. Only a hook that is
defined in ``__main__`` brings it back.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from typing import Any, Final, NamedTuple

from paraload.runtime.interrupts import interrupts_blocked


class _QuietPopen(popen_spawn_posix.Popen):
    """Starts a spawned process that the terminal's Ctrl-C does not reach."""

    def _launch(self, process_obj: Any) -> None:
        with interrupts_blocked():
            super()._launch(process_obj)  # type: ignore[misc]  # typeshed does not know it


class _LeanPopen(popen_spawn_posix.Popen):
    """The same, and it leaves the caller's ``__main__`` alone."""

    def _launch(self, process_obj: Any) -> None:
        stdlib: Any = util  # typeshed knows nothing of these private helpers
        inherited: list[int] = self._fds  # type: ignore[attr-defined]
        tracker_fd = resource_tracker.getfd()
        preparation = spawn.get_preparation_data(process_obj._name)  # noqa: SLF001
        for key in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(key, None)
        message = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            context.set_spawning_popen(None)
        child_reads, parent_writes = os.pipe()
        try:
            self.sentinel, child_keeps = os.pipe()
        except BaseException:
            stdlib.close_fds(child_reads, parent_writes)
            raise
        self.finalizer = util.Finalize(self, stdlib.close_fds, (self.sentinel, parent_writes))
        try:
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_reads)
            passed = [*inherited, tracker_fd, child_reads, child_keeps]
            with interrupts_blocked():
                self.pid = stdlib.spawnv_passfds(spawn.get_executable(), command, passed)
        finally:
            os.close(child_reads)
            os.close(child_keeps)
        try:
            with suppress(OSError):  # it is only faster so
                own = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PROCESS, self.pid, own + process_obj.niceness)
            with os.fdopen(parent_writes, "wb", closefd=False) as pipe:
                pipe.write(message.getbuffer())
        except BaseException:  # nothing else knows of the process yet
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise


class _Process(context.SpawnProcess):
    popen: type[popen_spawn_posix.Popen]
    niceness: int

    @staticmethod
    def _Popen(process_obj: Any) -> popen_spawn_posix.Popen:  # noqa: N802 - multiprocessing's name
        popen: popen_spawn_posix.Popen = process_obj.popen(process_obj)
        return popen


class EndedWorker(NamedTuple):
    """A process that has ended; a negative exit code is the signal that ended it."""

    pid: int
    exitcode: int

    def __str__(self) -> str:
        return f"process {self.pid} ended with {_ending(self.exitcode)}"


class WorkerContext(context.SpawnContext):
    """A spawn context that knows the processes and locks that were made with it."""

    def __init__(self, *, with_main: bool, niceness: int) -> None:
        super().__init__()
        self._niceness = niceness
        self._popen = _QuietPopen if with_main else _LeanPopen
        self.processes: list[Any] = []
        self._locks: list[weakref.ref[Any]] = []

    def Process(  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        self, *args: Any, **kwargs: Any
    ) -> Any:
        process = _Process(*args, **kwargs)
        process.popen, process.niceness = self._popen, self._niceness
        self.processes.append(process)
        return process

    def Lock(self) -> Any:  # noqa: N802 - multiprocessing's name
        return self._remember(super().Lock())

    def BoundedSemaphore(self, value: int = 1) -> Any:  # noqa: N802 - multiprocessing's name
        return self._remember(super().BoundedSemaphore(value))

    def _remember(self, lock: Any) -> Any:
        self._locks.append(weakref.ref(lock))
        return lock

    def dead_workers(self, *, patience_s: float = 0.0) -> list[EndedWorker]:
        """The processes that have ended although nothing asked them to.

        When one worker dies, a pool ends the others by SIGTERM; these are returned only if all
        that ended did so by SIGTERM.

        Args:
            patience_s: how long to wait for one: while another thread collects it, there is no
                telling how it ended.
        """
        until_s = time.monotonic() + patience_s
        while True:
            dead = self._ended()
            first = [one for one in dead if one.exitcode != -signal.SIGTERM]
            if first or time.monotonic() >= until_s:
                return first or dead
            time.sleep(_LOOK_AGAIN_S)

    def _ended(self) -> list[EndedWorker]:
        return [
            EndedWorker(process.pid, process.exitcode)
            for process in list(self.processes)
            if process.pid is not None and process.exitcode is not None
        ]

    def kill(self) -> None:
        """End every worker that has been started until now; a pool may be starting others."""
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

    def locks_are_gone(self) -> bool:
        """Whether every lock, and so every named semaphore, has been collected."""
        if any(reference() is not None for reference in self._locks):
            gc.collect()
        return all(reference() is None for reference in self._locks)


@contextmanager
def worker_context(*, with_main: bool, niceness: int) -> Iterator[WorkerContext]:
    """A context for worker processes that leaves nothing behind.

    ``niceness``: by how much they give way to this process.

    ``multiprocessing`` starts a resource tracker with the first spawned process and keeps it for
    the life of the program. One that was not running before is stopped again, unless somebody else
    has child processes by now.
    """
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001 - no public way to it
    was_running = tracker._fd is not None  # noqa: SLF001
    mp_context = WorkerContext(with_main=with_main, niceness=niceness)
    try:
        resource_tracker.ensure_running()  # what it is not told about would be left behind
        yield mp_context
    finally:
        mp_context.forget_processes()
        are_gone = mp_context.locks_are_gone()  # or else they stay until somebody collects them
        if are_gone and not was_running and not multiprocessing.active_children():
            tracker._stop()  # noqa: SLF001 - there is no public way to end it


_LOOK_AGAIN_S: Final = 0.01


def _ending(exitcode: int) -> str:
    """What ``exitcode`` means: a negative one is a signal."""
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"
