"""Threads that share the caller's memory: the default, since reads and checksums drop the GIL.

    caller --tasks (SimpleQueue)--> N threads --batches of results (SimpleQueue)--> caller
                                        |                                             ^
                                     samples --> Ramp --None: another N---------------+

A ``None`` among the tasks ends a thread. Cancellation is an event that every read looks at first,
so that a thread ends after the read it is in, not after its task.

A number of threads that is not given is found out: the threads sample their reads (``_gauge``) and
conclude how many there should be (``_ramp``), and a ``None`` among the results wakes the caller,
who alone starts and ends threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import Final

from paraload.core.memory import TargetMemory
from paraload.core.results import TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.executors.base import STUCK_THREADS
from paraload.executors.gauge import GaugedSource
from paraload.executors.ramp import Ramp, RampLimits, Sample
from paraload.runtime.daemon_threads import PATIENCE_S, end_threads, start_thread
from paraload.workers.read_context import Cancelled, Work
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink

#: Results that come together, unless that takes longer than this. To wake the caller for each of
#: them made loads from the page cache 5 % slower.
_BATCH_RESULTS: Final = 4
_BATCH_WITHIN_S: Final = 0.02
#: Tasks for each thread: those of one batch, and as many that it does until the next ones come.
_TASKS_IN_FLIGHT: Final = 2 * _BATCH_RESULTS


class ThreadExecutor:
    """:class:`~paraload.executors.base.ReadExecutor` on threads.

    If the system starts only some of the threads, those do all the work; if none, the caller's
    thread does.

    Args:
        workers: how many.
        ramp: find out how many instead, from ``ramp.start`` on.
    """

    name = "threads"
    stuck_hint = STUCK_THREADS
    _team: ThreadTeam

    def __init__(self, workers: int, ramp: RampLimits | None = None) -> None:
        self.workers = workers
        self.downgrades: list[str] = []
        self._ramp = ramp

    def start(self, work: Work, targets: Mapping[int, TargetMemory]) -> None:
        """Start the threads; bytes land straight in ``targets``."""
        sink = TargetSink(targets)
        if self._ramp is None:
            self._team = ThreadTeam(work, sink, self.downgrades)
        else:
            self._team = RampingTeam(work, sink, self.downgrades, self._ramp)
        self._team.resize(self.workers if self._ramp is None else self._ramp.start)
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


class ThreadTeam:
    """Threads, the two queues that they share with the caller, and the event that ends them.

    Args:
        work: what all tasks need.
        sink: where bytes go.
        downgrades: receives the reason if fewer threads start than were asked for.

    Attributes:
        size: threads that go on.
        in_flight: tasks that have not come back.
    """

    def __init__(self, work: Work, sink: TargetSink, downgrades: list[str]) -> None:
        self.size = 0
        self.in_flight = 0
        self.tasks: SimpleQueue[ReadTask | None] = SimpleQueue()
        self._downgrades = downgrades
        self._tasks_here: deque[ReadTask] = deque()  # for the caller's thread
        self._results: SimpleQueue[list[TaskResult] | BaseException | None] = SimpleQueue()
        self._surplus: deque[None] = deque()  # threads that are to end, before they take a task
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reading: dict[int, ReadTask] = {}  # by the ident of its thread
        self._work = replace(work, is_cancelled=self._cancelled.is_set)
        self._sink = sink

    # ------------------------------------------------------------------ on the caller's thread

    def submit(self, task: ReadTask, *, here: bool = False) -> None:
        """Run ``task`` on a thread; or ``here``, on the caller's, as where there are no threads."""
        self.in_flight += 1
        if here or not self.size:
            self._tasks_here.append(task)
        else:
            self.tasks.put(task)

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        if self._tasks_here:
            self.in_flight -= 1
            return [run_task(self._tasks_here.popleft(), self._work, self._sink)]
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
            self._woken()

    def running(self) -> Sequence[ReadTask]:
        return list(self._reading.values())

    def resize(self, size: int) -> None:
        """Start threads, or end some as soon as they are free."""
        names = self._free_names()
        for started in range(self.size, size):
            try:
                start_thread(self._threads, self._live, next(names))
            except RuntimeError as error:  # a limit of the system, of a container or a user
                self._refused(started, size, error)
                size = started
                break
        for _ in range(size, self.size):
            self._surplus.append(None)
            self.tasks.put(None)  # for those who wait for a task; the others look by themselves
        self.size = size

    def _refused(self, started: int, size: int, error: RuntimeError) -> None:
        if not self._downgrades or not self._downgrades[-1].startswith("threads: "):
            how_many = f"only {started}" if started else "none"
            self._downgrades.append(f"threads: {how_many} of {size} could be started ({error})")

    def _free_names(self) -> Iterator[str]:
        """Unused names: a trace has a track for each name, where reads must not overlap."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        taken = {thread.name for thread in self._threads}
        return (name for n in count() if (name := f"paraload-{n}") not in taken)

    def end(self, patience_s: float = PATIENCE_S) -> None:
        """End all threads, each after the read that it is in."""
        self._cancelled.set()
        end_threads(self._threads, self.tasks, patience_s)

    def _woken(self) -> None:
        """A thread has put a ``None`` among the results."""

    # ------------------------------------------------------------------ on the threads

    def _live(self) -> None:
        """Do tasks until there are no more: the life of one thread."""
        batch = _ResultBatch(self._results)
        ident = threading.get_ident()
        while (task := self._next_task(batch)) is not None and not self._cancelled.is_set():
            self._reading[ident] = task
            try:
                batch.add(self._run(task))
            except Cancelled:
                return
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                batch.send()
                self._results.put(error)
            del self._reading[ident]
        batch.send()

    def _next_task(self, batch: _ResultBatch) -> ReadTask | None:
        """The next task; ``None`` ends the thread. An idle thread keeps no results back."""
        while not self._cancelled.is_set():
            if self._is_surplus():
                break
            try:
                task = self.tasks.get_nowait()
            except Empty:
                batch.send()
                task = self.tasks.get()
            if task is not None:
                return task
        return None

    def _is_surplus(self) -> bool:
        """Whether this thread is one too many: the first ones to ask are."""
        try:
            self._surplus.pop()
        except IndexError:
            return False
        return True

    def _run(self, task: ReadTask) -> TaskResult:
        return run_task(task, self._work, self._sink)


class _ResultBatch:
    """Results of one thread that the caller does not have yet.

    The results of fast reads come a few at a time: each time that the caller wakes, it takes a core
    from a reader and finds its caches full of what was read.
    """

    def __init__(self, results: SimpleQueue[list[TaskResult] | BaseException | None]) -> None:
        self._results = results
        self._held: list[TaskResult] = []
        self._sent_s = time.monotonic()

    def add(self, result: TaskResult) -> None:
        """Hold ``result``, and send all if they are enough or the first has waited long enough."""
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
    """A team that is as large as the storage wants it to be."""

    def __init__(
        self, work: Work, sink: TargetSink, downgrades: list[str], limits: RampLimits
    ) -> None:
        super().__init__(work, sink, downgrades)
        self._ramp = Ramp(limits)
        self._wanted = limits.start
        self._alive = 0
        self._noting = threading.Lock()
        self._gauge = GaugedSource(work.source, self._note)
        self._gauged_work = replace(self._work, source=self._gauge)

    def resize(self, size: int) -> None:
        """Start or end threads; samples from before no longer count."""
        started = max(0, size - self.size)
        with self._noting:
            self._alive += started
        super().resize(size)
        missing = max(0, size - self.size)
        if missing:
            with self._noting:
                self._ramp.limit_to(self.size)  # it would ask for them again and again
                self._wanted = self.size
        self._settle(missing)

    def _settle(self, left: int) -> None:
        """So many threads have left: samples count when there are no more than there should be."""
        with self._noting:
            self._alive -= left
            if self._alive == self.size:
                self._ramp.changed(time.monotonic())

    def _woken(self) -> None:
        self.resize(self._wanted)

    def _live(self) -> None:
        self._gauge.begin()
        try:
            super()._live()
        finally:
            self._settle(1)

    def _run(self, task: ReadTask) -> TaskResult:
        if isinstance(task, LocateTask):
            # Headers are all latency: among samples of data they would look like a slow storage.
            result = super()._run(task)
            self._gauge.begin()
            return result
        result = run_task(task, self._gauged_work, self._sink)
        if isinstance(task, RecordsTask) and task.as_stream:
            self._gauge.count(result.tally.bytes_read)
        return result

    def _note(self, sample: Sample) -> None:
        with self._noting:
            before, self._wanted = self._wanted, self._ramp.note(sample)
            is_new = self._wanted != before
        if is_new:
            self._results.put(None)
