"""Threads that share the caller's memory: the default, since reads and checksums release the GIL.

    caller --tasks (SimpleQueue)--> N threads --batches of results (SimpleQueue)--> caller
                                        |                                             ^
                                     samples --> Ramp --None: N has changed-----------+

A ``None`` among the tasks ends a thread. Every read first looks at the event for cancellation, so
that a thread ends after its current read, not after its task.

If the number of threads is not given, the threads sample their reads (``gauge``), which says how
many there should be (``ramp``); a ``None`` among the results wakes the caller, which alone starts
and ends threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import Final

from paraload.core.memory import TargetMemory
from paraload.core.results import LandedItems, TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.executors.gauge import GaugedSource
from paraload.executors.ramp import Ramp, RampLimits, Sample
from paraload.runtime.daemon_threads import (
    PATIENCE_S,
    PATIENCE_WITH_STALLED_S,
    end_threads,
    start_thread,
)
from paraload.workers.read_context import Cancelled, ReadContext
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink

#: Threads send their results in batches, unless these take longer than this: to wake the caller for
#: each result made loads from the page cache 5 % slower, since it takes a core from a reader and
#: finds its caches full of what was read.
_BATCH_RESULTS: Final = 4
_BATCH_WITHIN_S: Final = 0.02
#: Tasks per thread: those of one batch, and as many to do until the next ones arrive.
_TASKS_IN_FLIGHT: Final = 2 * _BATCH_RESULTS


class ThreadExecutor:
    """:class:`~paraload.executors.base.ReadExecutor` on threads.

    If the system starts only some of the threads, those do all the work; if none, the caller's
    thread does. With ``ramp`` their number adapts within these limits, whatever ``workers`` is.
    """

    name = "threads"
    stuck_hint = (
        "A thread that is stuck cannot be ended: it may still write to the tensors that it reads"
        " into, so do not use them again in this process"
    )
    _team: ThreadTeam

    def __init__(self, workers: int, ramp: RampLimits | None = None) -> None:
        self.workers = workers
        self.downgrades: list[str] = []
        self._ramp = ramp

    def start(self, context: ReadContext, targets: Mapping[int, TargetMemory]) -> None:
        sink = TargetSink(targets)
        if self._ramp is None:
            self._team = ThreadTeam(context, sink, self.downgrades)
            self._team.resize(self.workers)
        else:
            self._team = RampingTeam(context, sink, self.downgrades, self._ramp)
            self._team.resize(self._ramp.start)
        self.workers = self._team.size
        if not self.workers:
            self.name, self.workers = "sequential", 1

    def capacity(self) -> int:
        return (_TASKS_IN_FLIGHT * self._team.size or 1) - self._team.in_flight

    def submit(self, task: ReadTask) -> None:
        self._team.submit(task)

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        results = self._team.ready(timeout_s)
        self.workers = max(self.workers, self._team.size)
        return results

    def running(self) -> Sequence[ReadTask]:
        return self._team.running()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        if (team := getattr(self, "_team", None)) is not None:
            team.end(patience_s)


class SequentialExecutor(ThreadExecutor):
    """:class:`~paraload.executors.base.ReadExecutor` that runs one task at a time.

    A system call cannot be given a deadline, so one thread makes plain reads while the caller
    waits. Hooks and streams stay on the caller's thread, where a debugger finds them.
    """

    name = "sequential"

    def __init__(self) -> None:
        super().__init__(workers=1)

    def start(self, context: ReadContext, targets: Mapping[int, TargetMemory]) -> None:
        ignored: list[str] = []  # without the thread, the caller's is not slower
        self._team = ThreadTeam(context, TargetSink(targets), ignored)
        if context.stall_timeout_s is not None and not context.hooks:
            self._team.resize(1)

    def capacity(self) -> int:
        return 1 - self._team.in_flight

    def submit(self, task: ReadTask) -> None:
        self._team.submit(task, here=isinstance(task, RecordsTask) and task.as_stream)

    def close(self, patience_s: float = PATIENCE_WITH_STALLED_S) -> None:
        super().close(min(patience_s, PATIENCE_WITH_STALLED_S))


class ThreadTeam:
    """The threads of one run, and the queues and event that they share with the caller.

    ``size`` counts the threads that are to go on. ``downgrades`` receives the reason if fewer start
    than requested.
    """

    def __init__(self, context: ReadContext, sink: TargetSink, downgrades: list[str]) -> None:
        self.size = 0
        self.in_flight = 0
        self.tasks: SimpleQueue[ReadTask | None] = SimpleQueue()
        self._downgrades = downgrades
        self._tasks_here: deque[ReadTask] = deque()  # for the caller's thread
        self._results: SimpleQueue[list[TaskResult] | BaseException | None] = SimpleQueue()
        self._surplus = threading.Semaphore(0)  # counts the threads that are to end
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reading: dict[int, ReadTask] = {}  # by the ident of its thread
        self._context = replace(context, is_cancelled=self._cancelled.is_set)
        self._sink = sink

    # ------------------------------------------------------------------ on the caller's thread

    def submit(self, task: ReadTask, *, here: bool = False) -> None:
        """Run ``task`` on a thread; on the caller's if ``here``, or if no thread has started."""
        self.in_flight += 1
        if here or not self.size:
            self._tasks_here.append(task)
        else:
            self.tasks.put(task)

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        if self._tasks_here:
            self.in_flight -= 1
            return [run_task(self._tasks_here.popleft(), self._context, self._sink)]
        while True:
            try:
                results = self._results.get(timeout=timeout_s)
            except Empty:
                return ()
            if isinstance(results, BaseException):
                raise results
            if results is not None:
                self.in_flight -= len(results)
                return results
            self._on_wakeup()

    def running(self) -> Sequence[ReadTask]:
        return list(self._reading.values())

    def resize(self, size: int) -> None:
        """Start threads, or end some as soon as they are free."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # A trace has a track for each name, where reads must not overlap.
        taken = {thread.name for thread in self._threads}
        names = (name for n in count() if (name := f"paraload-{n}") not in taken)
        for started in range(self.size, size):
            try:
                start_thread(self._threads, self._run_tasks, next(names))
            except RuntimeError as error:  # a limit of the system, of a container or a user
                how_many = f"only {started}" if started else "none"
                reason = f"threads: {how_many} of {size} could be started ({error})"
                self._downgrades.append(reason)
                size = started
                break
        for _ in range(size, self.size):
            self._surplus.release()
            self.tasks.put(None)  # wakes an idle thread; a busy one looks at _surplus first
        self.size = size

    def end(self, patience_s: float = PATIENCE_S) -> None:
        """End all threads, each after its current read."""
        self._cancelled.set()
        end_threads(self._threads, self.tasks, patience_s)

    def _on_wakeup(self) -> None:
        """Called when a thread has put a ``None`` among the results."""

    # ------------------------------------------------------------------ on the threads

    def _run_tasks(self) -> None:
        batch = _ResultBatch(self._results)
        ident = threading.get_ident()
        while (task := self._next_task(batch)) is not None:
            self._reading[ident] = task
            try:
                result = self._run(task)
            except Cancelled:
                return
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                batch.send()
                self._results.put(error)
                del self._reading[ident]
            else:
                del self._reading[ident]  # first: a task with a result is not running
                batch.add(result)
        batch.send()

    def _next_task(self, batch: _ResultBatch) -> ReadTask | None:
        """Wait for the next task; ``None`` ends the thread."""
        while not (self._cancelled.is_set() or self._surplus.acquire(blocking=False)):
            try:
                task = self.tasks.get_nowait()
            except Empty:
                batch.send()  # an idle thread must not hold back results
                task = self.tasks.get()
            if task is not None:
                return task
        return None

    def _run(self, task: ReadTask) -> TaskResult:
        return run_task(task, self._context, self._sink)


class _ResultBatch:
    """Results of one thread that have not been sent to the caller."""

    def __init__(self, results: SimpleQueue[list[TaskResult] | BaseException | None]) -> None:
        self._results = results
        self._held: list[TaskResult] = []
        self._sent_s = time.monotonic()

    def add(self, result: TaskResult) -> None:
        """Hold ``result``; send all if they are enough, or if the first has waited too long."""
        self._held.append(result)
        is_late = time.monotonic() - self._sent_s > _BATCH_WITHIN_S
        if is_late or len(self._held) >= _BATCH_RESULTS:
            self.send()

    def send(self) -> None:
        if self._held:
            self._results.put(self._held)
            self._held = []
        self._sent_s = time.monotonic()


class RampingTeam(ThreadTeam):
    """A team that adapts its size to the storage."""

    def __init__(
        self, context: ReadContext, sink: TargetSink, downgrades: list[str], limits: RampLimits
    ) -> None:
        super().__init__(context, sink, downgrades)
        self._ramp = Ramp(limits)
        self._ramp_lock = threading.Lock()
        self._alive = 0  # threads that have not ended, those that are to end included
        self._gauge = GaugedSource(context.source, self._note)
        self._gauged_work = replace(self._context, source=self._gauge)

    def resize(self, size: int) -> None:
        with self._ramp_lock:
            self._alive += max(0, size - self.size)
        super().resize(size)
        if missing := max(0, size - self.size):
            with self._ramp_lock:
                self._ramp.limit_to(self.size)  # or it would ask for them again and again
        self._have_ended(missing)

    def _have_ended(self, threads: int) -> None:
        """Let samples count from the moment when there are as many threads as there should be."""
        with self._ramp_lock:
            self._alive -= threads
            if self._alive == self.size:
                self._ramp.changed(time.monotonic())

    def _on_wakeup(self) -> None:
        self.resize(self._ramp.workers)

    def _run_tasks(self) -> None:
        try:
            super()._run_tasks()
        finally:
            self._have_ended(1)

    def _run(self, task: ReadTask) -> TaskResult:
        self._gauge.require_begun()
        if isinstance(task, LocateTask):
            result = super()._run(task)
            if any(isinstance(outcome, LandedItems) for outcome in result.outcomes):
                self._gauge.count(result.tally.bytes_read)
            else:
                # Headers are all latency: among samples they would look like a slow storage.
                self._gauge.begin()
            return result
        result = run_task(task, self._gauged_work, self._sink)
        if isinstance(task, RecordsTask) and task.as_stream:
            self._gauge.count(result.tally.bytes_read)
        return result

    def _note(self, sample: Sample) -> None:
        with self._ramp_lock:
            before = self._ramp.workers
            has_changed = self._ramp.note(sample) != before
        if has_changed:
            self._results.put(None)
