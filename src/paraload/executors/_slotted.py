"""The run that both process executors share: slots, dead workers, and the order of tearing down.

    feed ---> slot + task ---> WorkerPool.submit ...... done(slot, result) ---> deliver ---> caller
                                   |
                        _processes or _pool: who starts workers and carries the pickles

The caller's thread reads too, whenever no result waits for it: while workers start (0.2 s, in which
it reads half a GiB) and while all of them are busy. Hooks and decoders never run there.

A worker that is killed must not leave the caller waiting: a pool that can tell answers with an
exception; for one that cannot, the caller looks after its workers itself while it waits.
"""

from __future__ import annotations

import time
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from paraload._interrupts import interrupts_deferred
from paraload._shared import (
    SLOTS_PER_WORKER,
    SlotRing,
    SlottedTask,
)
from paraload._sink import TargetSink
from paraload._spawn import worker_context
from paraload._task import LocateTask, RunsTask, SharedTask
from paraload._worker import run_task
from paraload.executors._base import drive, stalled
from paraload.executors._deaths import needs_main, require_startable, worker_died
from paraload.executors._threads import ThreadExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._spawn import EndedWorker, WorkerContext
    from paraload._task import ReadTask
    from paraload._work import Work
    from paraload.errors import WorkerDiedError

__all__ = ["WorkerPool", "run_in_slots_or_threads"]

_LOOK_AFTER_WORKERS_S = 0.2
#: How long to wait for how a worker ended, once it is known that one has.
_PATIENCE_S = 1.0
#: Workers without hooks only read, which the caller does with one copy less: where there are not
#: cores for all, they give way to it. A tenth faster on 2 cores, and nothing elsewhere.
_NICENESS_OF_READERS = 10


class _NotStartedError(Exception):
    """The system refuses to start workers: a limit of processes or threads, or no shared memory."""

    def __init__(self, why: str, tasks: list[ReadTask]) -> None:
        super().__init__(why)
        self.why = why
        self.tasks = tasks  # already taken from the feed


class _InProcesses(Protocol):
    """The attributes of both process executors."""

    name: str
    workers: int
    slot_bytes: int
    downgrades: list[str]


class WorkerPool(Protocol):
    """Starts workers and carries tasks to them."""

    def submit(self, task: SlottedTask, done: Callable[[Any], None]) -> None:
        """Run ``task`` in a worker; ``done`` gets its result, or the exception in its place."""

    def close(self, *, orderly: bool) -> None:
        """End all workers, and everything else that the pool made.

        Unless the end is orderly, workers may be dead or busy, and are killed.
        """


def run_in_slots_or_threads(
    executor: _InProcesses,
    start_pool: Callable[[WorkerContext, int, tuple[Any, ...]], WorkerPool],
    work: Work,
    feed: Callable[[], ReadTask | None],
    targets: Mapping[int, TargetMemory],
) -> Generator[TaskResult, None, None]:
    """See :class:`~paraload.executors._base.ReadExecutor`; uses threads if no process starts."""
    workers = executor.workers
    try:
        yield from _run_in_slots(start_pool, workers, executor.slot_bytes, work, feed, targets)
    except _NotStartedError as error:
        why, left = error.why, error.tasks[::-1]
    else:
        return
    executor.downgrades.append(f"threads instead of {executor.name}: {why}")
    threads = ThreadExecutor(workers)
    threads.downgrades = executor.downgrades
    executor.name = threads.name
    for result in threads.run(work, lambda: left.pop() if left else feed(), targets):
        executor.name, executor.workers = threads.name, threads.workers
        yield result


def _run_in_slots(
    start_pool: Callable[[WorkerContext, int, tuple[Any, ...]], WorkerPool],
    workers: int,
    slot_bytes: int,
    work: Work,
    feed: Callable[[], ReadTask | None],
    targets: Mapping[int, TargetMemory],
) -> Generator[TaskResult, None, None]:
    require_startable(work)
    slots = SLOTS_PER_WORKER * workers
    with_main = needs_main(work)
    niceness = 0 if work.hooks or work.decoders else _NICENESS_OF_READERS
    orderly = False
    with ExitStack() as made:
        try:
            refusal = ""
            try:
                with interrupts_deferred():
                    mp_context = made.enter_context(
                        worker_context(with_main=with_main, niceness=niceness)
                    )
                    ring = made.enter_context(SlotRing(slots, slot_bytes))
                    pool = start_pool(mp_context, workers, (work, ring.name, slot_bytes))
                    made.callback(lambda: pool.close(orderly=orderly))
            except Exception as error:  # noqa: BLE001 - raised again unless it is a refusal
                refusal = _refusal(error)
            if refusal:
                raise _NotStartedError(refusal, [])
            run = _Run(pool, ring, mp_context, work, TargetSink(targets))
            for slot, result in drive(feed, lambda: slots, run.submit, run.wait, run.help_out):
                if slot is None:
                    yield result
                    continue
                yield ring.deliver(result, slot, work, targets)
                ring.recycle(slot)
            orderly = True
        finally:
            with interrupts_deferred():
                made.close()


class _Run:
    """Tasks in flight, by slot."""

    def __init__(
        self,
        pool: WorkerPool,
        ring: SlotRing,
        mp_context: WorkerContext,
        work: Work,
        sink: TargetSink,
    ) -> None:
        self._pool = pool
        self._ring = ring
        self._context = mp_context
        self._work = work
        self._sink = sink
        self._in_flight: dict[int, ReadTask] = {}
        self._done: SimpleQueue[tuple[int, Any]] = SimpleQueue()

    def submit(self, task: ReadTask) -> None:
        slot = self._ring.acquire()
        self._in_flight[slot] = task
        done = self._done
        refusal = ""
        try:
            with interrupts_deferred():  # a pool may start its processes now
                self._pool.submit(SlottedTask(task, slot), lambda result: done.put((slot, result)))
        except Exception as error:  # noqa: BLE001 - raised again unless it is a refusal
            refusal = _refusal(error)
        if refusal:
            raise _NotStartedError(refusal, [*self._in_flight.values()])

    def help_out(self, task: ReadTask) -> tuple[None, TaskResult] | None:
        """Do ``task`` here while the workers start or are busy: plain reads only, never hooks."""
        if not isinstance(task, LocateTask | RunsTask | SharedTask) or not self._done.empty():
            return None
        return None, run_task(task, self._work, self._sink)

    def wait(self) -> tuple[int | None, TaskResult]:
        """The next result of a worker."""
        timeout_s = self._work.stall_timeout_s
        waiting_since_s = time.monotonic()
        while True:
            try:
                slot, result = self._done.get(timeout=_LOOK_AFTER_WORKERS_S)
            except Empty:
                if dead := self._context.dead_workers():
                    raise self._died(dead) from None
                if timeout_s is not None and time.monotonic() - waiting_since_s > timeout_s:
                    hint = "The worker processes were ended"
                    raise stalled(self._in_flight.values(), timeout_s, hint) from None
                continue
            if isinstance(result, BaseException):
                is_broken = isinstance(result, BrokenExecutor)
                dead = self._context.dead_workers(patience_s=_PATIENCE_S if is_broken else 0.0)
                if dead or is_broken:
                    raise self._died(dead) from result
                raise result
            del self._in_flight[slot]
            return slot, result

    def _died(self, ended: list[EndedWorker]) -> WorkerDiedError:
        tasks = list(self._in_flight.values())
        return worker_died(tasks, ended, self._work, self._ring.has_started)


def _refusal(error: Exception) -> str:
    """Why the system refuses to start a worker.

    Only as text: the frames of the error hold the locks of half-made objects.

    Raises:
        Exception: ``error``, if it is not a refusal.
    """
    is_refusal = isinstance(error, OSError | ImportError | NotImplementedError)
    if not is_refusal and "start new thread" not in str(error):
        raise error
    return str(error)
