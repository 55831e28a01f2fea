"""Threads that share the caller's memory: the default, since reads and checksums drop the GIL.

    caller ---tasks (SimpleQueue)---> N threads ---results (SimpleQueue)---> caller
                                         |                                     ^
                                       samples --> Ramp --None: another N------+

A ``None`` among the tasks ends a thread. Cancellation is an event that every read looks at first,
so that a thread ends after the read it is in, not after its task.

A number of threads that is not given is found out: the threads sample their reads (``_gauge``) and
conclude how many there should be (``_ramp``), and a ``None`` among the results wakes the caller,
who alone starts and ends threads.

Results of fast reads come a few at a time (``_Outbox``): each time that the caller wakes it takes a
core from a reader, and finds its caches full of what was read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from paraload._daemons import PATIENCE_S, PATIENCE_WITH_STALLED_S
from paraload._interrupts import interrupts_deferred
from paraload._sink import TargetSink
from paraload._task import LocateTask, RecordsTask
from paraload._work import Cancelled
from paraload._worker import run_task
from paraload.executors._base import STUCK, drive, stalled
from paraload.executors._gauge import GaugedSource
from paraload.executors._ramp import Ramp
from paraload.executors._sequential import SequentialExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._work import Work
    from paraload.executors._ramp import RampLimits, Sample

    _Answer = TaskResult | BaseException

__all__ = ["ThreadExecutor"]

logger = logging.getLogger("paraload")

#: Results that come together, unless that takes longer than this. To wake the caller for each of
#: them made loads from the page cache 5 % slower.
_RESULTS_TOGETHER: Final = 4
_TOGETHER_WITHIN_S: Final = 0.02
#: Tasks for each thread: those of one batch, and as many that it does until the next ones come.
_TASKS_IN_FLIGHT: Final = 2 * _RESULTS_TOGETHER


class ThreadExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` on threads.

    Args:
        workers: how many.
        ramp: find out how many instead, from ``ramp.start`` on; ``workers`` becomes the most that
            there were at once.
    """

    name = "threads"

    def __init__(self, workers: int, ramp: RampLimits | None = None) -> None:
        self.workers = workers
        self.downgrades: list[str] = []
        self._ramp = ramp

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run tasks on the threads; bytes land straight in ``targets``.

        If the system starts only some of the threads, those do all the work; if none, the caller's
        thread does.
        """
        sink = TargetSink(targets)
        crew = _Crew(work, sink) if self._ramp is None else _RampingCrew(work, sink, self._ramp)
        crew.downgrades = self.downgrades
        try:
            crew.resize(self.workers if self._ramp is None else self._ramp.start)
            if not crew.size:
                self.name, self.workers = SequentialExecutor.name, SequentialExecutor.workers
                yield from SequentialExecutor().run(work, feed, targets)
                return
            if crew.downgrades:
                self.workers = crew.size
            for result in drive(feed, crew.capacity, crew.tasks.put, crew.wait):
                self.workers = max(self.workers, crew.size)
                yield result
        finally:
            with interrupts_deferred():
                crew.dismiss()


class _Crew:
    """Threads, the two queues that they share with the caller, and the event that ends them.

    Attributes:
        size: threads that go on.
        downgrades: receives the reason if fewer threads start than were asked for.
    """

    def __init__(self, work: Work, sink: TargetSink) -> None:
        self.size = 0
        self.downgrades: list[str] = []
        self.tasks: SimpleQueue[ReadTask | None] = SimpleQueue()
        self._results: SimpleQueue[list[_Answer] | None] = SimpleQueue()
        self._arrived: deque[_Answer] = deque()
        self._surplus: deque[None] = deque()  # threads that are to end, before they take a task
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reading: dict[int, ReadTask] = {}  # by the ident of its thread
        self._is_stalled = False
        self._work = replace(work, is_cancelled=self._cancelled.is_set)
        self._sink = sink

    # ------------------------------------------------------------------ on the caller's thread

    def capacity(self) -> int:
        """Tasks in flight at most."""
        return _TASKS_IN_FLIGHT * self.size

    def wait(self) -> TaskResult:
        """The next result."""
        timeout_s = self._work.stall_timeout_s
        while not self._arrived:
            try:
                arrived = self._results.get(timeout=timeout_s)
            except Empty:
                self._is_stalled = True
                raise stalled(self._reading.values(), timeout_s or 0.0, STUCK) from None
            if arrived is None:
                self._woken()
            else:
                self._arrived.extend(arrived)
        result = self._arrived.popleft()
        if isinstance(result, BaseException):
            raise result
        return result

    def resize(self, size: int) -> None:
        """Start threads, or end some as soon as they are free."""
        with interrupts_deferred():  # a thread that is in no list is never waited for
            names = self._free_names()
            for started in range(self.size, size):
                thread = threading.Thread(target=self._live, name=next(names), daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # a limit of the system, of a container or a user
                    self._refused(started, size, error)
                    size = started
                    break
                self._threads.append(thread)
        for _ in range(size, self.size):
            self._surplus.append(None)
            self.tasks.put(None)  # for those who wait for a task; the others look by themselves
        self.size = size

    def _refused(self, started: int, size: int, error: RuntimeError) -> None:
        if not self.downgrades or not self.downgrades[-1].startswith("threads: "):
            how_many = f"only {started}" if started else "none"
            self.downgrades.append(f"threads: {how_many} of {size} could be started ({error})")

    def _free_names(self) -> Iterator[str]:
        """Unused names: a trace has a track for each name, where reads must not overlap."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        taken = {thread.name for thread in self._threads}
        return (name for n in count() if (name := f"paraload-{n}") not in taken)

    def dismiss(self) -> None:
        """End all threads, each after the read that it is in."""
        self._cancelled.set()
        for _ in self._threads:
            self.tasks.put(None)
        patience_s = PATIENCE_WITH_STALLED_S if self._is_stalled else PATIENCE_S
        until_s = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        if stuck := [thread.name for thread in self._threads if thread.is_alive()]:
            logger.warning("threads that the storage does not let go of: %s", ", ".join(stuck))

    def _woken(self) -> None:
        """A thread has put a ``None`` among the results."""

    # ------------------------------------------------------------------ on the threads

    def _live(self) -> None:
        """Do tasks until there are no more: the life of one thread."""
        outbox = _Outbox(self._results)
        while (task := self._next_task(outbox)) is not None and not self._cancelled.is_set():
            self._reading[threading.get_ident()] = task
            try:
                result: _Answer = self._run(task)
            except Cancelled:
                return
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                result = error
            del self._reading[threading.get_ident()]
            outbox.add(result)
        outbox.send()

    def _next_task(self, outbox: _Outbox) -> ReadTask | None:
        """The next task; ``None`` ends the thread. Whoever has nothing to do keeps nothing back."""
        while not self._cancelled.is_set():
            if self._is_surplus():
                break
            try:
                task = self.tasks.get_nowait()
            except Empty:
                outbox.send()
                task = self.tasks.get()
            if task is not None:
                return task
        return None

    def _is_surplus(self) -> bool:
        """Whether this thread is one too many; whoever asks first is."""
        try:
            self._surplus.pop()
        except IndexError:
            return False
        return True

    def _run(self, task: ReadTask) -> TaskResult:
        return run_task(task, self._work, self._sink)


class _Outbox:
    """Results of one thread that the caller does not have yet."""

    def __init__(self, results: SimpleQueue[list[_Answer] | None]) -> None:
        self._results = results
        self._held: list[_Answer] = []
        self._sent_s = time.monotonic()

    def add(self, result: _Answer) -> None:
        """One more; sent with those before it when they are enough, or have taken long enough."""
        self._held.append(result)
        is_late = time.monotonic() - self._sent_s > _TOGETHER_WITHIN_S
        if is_late or len(self._held) >= _RESULTS_TOGETHER:
            self.send()

    def send(self) -> None:
        """Hand over what there is."""
        if self._held:
            self._results.put(self._held)
            self._held = []
        self._sent_s = time.monotonic()


class _RampingCrew(_Crew):
    """A crew that is as large as the storage wants it to be."""

    def __init__(self, work: Work, sink: TargetSink, limits: RampLimits) -> None:
        super().__init__(work, sink)
        self._ramp = Ramp(limits)
        self._wanted = limits.start
        self._alive = 0
        self._noting = threading.Lock()
        self._gauge = GaugedSource(work.source, self._note)
        self._gauged_work = replace(self._work, source=self._gauge)

    def resize(self, size: int) -> None:
        """Start or end threads; what was sampled among fewer or more of them counts no more."""
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
