"""What the process executors share: slots of shared memory, and workers that start lean.

    caller's process                                worker process
    task + slot number  ------- pickle ------->     run_task, bytes into the slot
    deliver(slot -> targets), slot is free  <---    TaskResult (numbers and spans, no bytes)

One segment holds all slots. It is unlinked in every case; the number of slots bounds both the tasks
in flight and the memory.

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
import pickle
import shutil
import signal
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, Final

from paraload._sink import SlotOverflowError, SlotSink, TargetSink, deliver
from paraload._task import TaskResult
from paraload._worker import Work, run_task
from paraload.errors import CheckpointReadError, HookNotPicklableError, WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from paraload._sink import TargetMemory
    from paraload._task import ReadTask

__all__ = [
    "SLOTS_PER_WORKER",
    "SlotRing",
    "SlottedTask",
    "WorkerContext",
    "ensure_picklable",
    "process_single_file",
    "start_worker",
    "worker_context",
    "workers_died",
]

#: One being filled, one being emptied.
SLOTS_PER_WORKER: Final = 2
_SHM_FOLDER: Final = "/dev/shm"  # noqa: S108 - where Linux keeps shared memory, only measured here


@dataclass(frozen=True, slots=True)
class SlottedTask:
    """A task and the slot that its bytes go to."""

    task: ReadTask
    slot: int


class SlotRing:
    """Slots of shared memory in the caller's process. Use as a context manager."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._require_room(slots * slot_bytes)
        self.slot_bytes = slot_bytes
        self._segment = SharedMemory(create=True, size=slots * slot_bytes)
        self._free = list(range(slots))
        self._lent: list[memoryview] = []

    @property
    def name(self) -> str:
        """What workers attach to."""
        return self._segment.name

    def acquire(self) -> int:
        """A free slot; there is one, since no more tasks than slots are in flight."""
        return self._free.pop()

    def deliver(
        self,
        result: TaskResult,
        slot: int,
        work: Work,
        targets: Mapping[int, TargetMemory],
    ) -> TaskResult:
        """Move a result out of ``slot``, which becomes free when :meth:`recycle` is called."""
        if result.overflowed:
            # The answer is longer than any slot: read it here, where no slot is needed.
            return run_task(result.task, work, TargetSink(targets))
        start = slot * self.slot_bytes
        view = self._segment.buf[start : start + self.slot_bytes]
        delivered = deliver(result, view, targets)
        self._lent = [view, *_views(delivered)]
        return delivered

    def recycle(self, slot: int) -> None:
        """The caller has done with the last delivered result."""
        self._release()
        self._free.append(slot)

    def _release(self) -> None:
        for view in reversed(self._lent):
            view.release()
        self._lent = []

    def __enter__(self) -> SlotRing:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlink first: the name must be gone whatever happens next."""
        self._segment.unlink()
        self._release()
        self._segment.close()

    @staticmethod
    def _require_room(nbytes: int) -> None:
        # A container often has 64 MiB here, and writing past it is not an error but a SIGBUS.
        if os.path.isdir(_SHM_FOLDER) and shutil.disk_usage(_SHM_FOLDER).free < nbytes:
            free = shutil.disk_usage(_SHM_FOLDER).free
            raise CheckpointReadError(
                f"process executors need {nbytes} bytes of shared memory, {_SHM_FOLDER} has {free};"
                " use executor='threads', fewer max_workers or a smaller memory_budget_bytes, or"
                " give the container more (docker run --shm-size)"
            )


def _views(result: TaskResult) -> list[memoryview]:
    found = (getattr(outcome, "data", None) for outcome in result.outcomes)
    return [data for data in found if isinstance(data, memoryview)]


# ------------------------------------------------------------------------- in the worker process


class _WorkerState:
    """What one worker process keeps between tasks."""

    work: Work
    segment: SharedMemory
    slot_bytes: int


_state = _WorkerState()


def start_worker(work: Work, segment_name: str, slot_bytes: int) -> None:
    """Initializer of a worker process."""
    # Ctrl-C reaches the whole process group; the caller alone decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _state.work = work
    _state.segment = SharedMemory(name=segment_name)
    _state.slot_bytes = slot_bytes


def process_single_file(task: SlottedTask) -> TaskResult:
    """Run one task, which concerns one file, in a worker process."""
    start = task.slot * _state.slot_bytes
    with _state.segment.buf[start : start + _state.slot_bytes] as slot:
        try:
            result = run_task(task.task, _state.work, SlotSink(slot))
        except SlotOverflowError:
            result = TaskResult(
                task=task.task,
                outcomes=(),
                reads=0,
                bytes_read=0,
                started_s=0.0,
                ended_s=0.0,
                worker="",
                overflowed=True,
            )
    return replace(result, worker=f"process-{os.getpid()}")


# ------------------------------------------------------------------------- starting workers


def ensure_picklable(work: Work, hooks: Mapping[str, Any]) -> None:
    """Refuse, before any work, what cannot be sent to a worker process."""
    for name, hook in hooks.items():
        try:
            pickle.dumps(hook)
        except Exception as error:
            raise HookNotPicklableError(
                f"{name}={hook!r} cannot be pickled for a worker process ({error}); define it at the"
                " top level of a module, or use executor='threads'"
            ) from error
    try:
        pickle.dumps(work)
    except Exception as error:
        raise HookNotPicklableError(
            f"a stream transform cannot be pickled for a worker process ({error}); use"
            " executor='threads'"
        ) from error


class _Popen(popen_spawn_posix.Popen):
    """Starts a spawned process that leaves the caller's ``__main__`` alone."""

    def _launch(self, process_obj: Any) -> None:
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
        self.sentinel, child_keeps = os.pipe()
        self.finalizer = util.Finalize(self, util.close_fds, (self.sentinel, parent_writes))
        try:
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_reads)
            passed = [*self._fds, tracker_fd, child_reads, child_keeps]
            self.pid = util.spawnv_passfds(spawn.get_executable(), command, passed)
        finally:
            os.close(child_reads)
            os.close(child_keeps)
        with os.fdopen(parent_writes, "wb", closefd=False) as pipe:
            pipe.write(message.getbuffer())


class _LeanProcess(context.SpawnProcess):
    """A spawned process without ``__main__``."""

    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:  # noqa: N802 - the name that multiprocessing calls
        return _Popen(process_obj)


class WorkerContext(context.SpawnContext):
    """A spawn context that knows the processes and locks that were made with it."""

    def __init__(self, *, with_main: bool) -> None:
        super().__init__()
        self._process_class = context.SpawnProcess if with_main else _LeanProcess
        self.processes: list[Any] = []
        self._locks: list[weakref.ref[Any]] = []

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - multiprocessing's name
        """Make a process and remember it."""
        process = self._process_class(*args, **kwargs)
        self.processes.append(process)
        return process

    def Lock(self) -> Any:  # noqa: N802 - multiprocessing's name
        """Make a lock and remember it."""
        return self._remember(super().Lock())

    def BoundedSemaphore(self, value: int = 1) -> Any:  # noqa: N802 - multiprocessing's name
        """Make a semaphore and remember it."""
        return self._remember(super().BoundedSemaphore(value))

    def _remember(self, lock: Any) -> Any:
        self._locks.append(weakref.ref(lock))
        return lock

    def dead_workers(self) -> list[str]:
        """The processes that have ended although nobody asked them to."""
        return [
            f"process {process.pid} ended with exit code {process.exitcode}"
            for process in list(self.processes)
            if process.pid is not None and process.exitcode is not None
        ]

    def kill(self) -> None:
        """End every worker, and free the locks that one of them may have died with."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                process.kill()
        for process in self.processes:
            if process.pid is not None:
                process.join()
        for reference in self._locks:
            lock = reference()
            if lock is not None and hasattr(lock, "release"):
                try:
                    lock.release()
                except ValueError:
                    continue  # it was free

    def locks_are_gone(self) -> bool:
        """Whether every lock, and so every named semaphore, has been collected."""
        if any(reference() is not None for reference in self._locks):
            gc.collect()
        return all(reference() is None for reference in self._locks)


@contextmanager
def worker_context(hooks: Mapping[str, Any]) -> Iterator[WorkerContext]:
    """A context for worker processes that leaves nothing behind.

    ``multiprocessing`` starts a resource tracker with the first spawned process and keeps it for
    the life of the program. One that was not running before is stopped again, unless somebody else
    has child processes by now.
    """
    with_main = any(getattr(hook, "__module__", None) == "__main__" for hook in hooks.values())
    tracker: Any = resource_tracker._resource_tracker  # type: ignore[attr-defined]  # noqa: SLF001
    was_running = tracker._fd is not None  # noqa: SLF001
    mp_context = WorkerContext(with_main=with_main)
    try:
        yield mp_context
    finally:
        for process in mp_context.processes:
            if process.pid is not None and process.exitcode is not None:
                process.close()
        mp_context.processes.clear()
        alone = not multiprocessing.active_children()
        if not was_running and alone and mp_context.locks_are_gone():
            tracker._stop()  # noqa: SLF001 - there is no public way to end it


def workers_died(tasks: list[ReadTask], details: list[str]) -> WorkerDiedError:
    """The error for tasks that were lost with their worker."""
    held = "; ".join(f"{task.path!r} bytes [{task.start}, {task.end})" for task in tasks)
    return WorkerDiedError(
        f"a worker process died while these were being read: {held}. "
        + ("; ".join(details) + ". " if details else "")
        + "Was it killed for lack of memory (see dmesg)? A smaller memory_budget_bytes, fewer"
        " max_workers or executor='threads' need less"
    )
