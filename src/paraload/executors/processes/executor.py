"""Worker processes: bytes come back through slots of shared memory.

    submit ---> slot + task ---> WorkerPool ...... done(slot, result) ---> ready: slot -> targets
       |
       `------> no slot is free: the caller's thread reads it, in ``ready``

The caller's thread reads too, whenever no result waits for it: while workers start (0.2 s, in which
it reads half a GiB) and while all of them are busy. Hooks and decoders never run there.

The caller must not wait for a worker that was killed: ``concurrent.futures`` answers with an
exception, and for ``multiprocessing.Pool`` ``ready`` checks the workers while it waits.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

from paraload.core.memory import TargetMemory
from paraload.core.results import TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RunsTask, SharedTask
from paraload.errors import WorkerDiedError
from paraload.executors.processes.deaths import defined_in_main, require_startable, worker_died
from paraload.executors.processes.pools import (
    Answers,
    FuturesPool,
    MultiprocessingPool,
    WorkerContext,
)
from paraload.executors.processes.slots import SLOTS_PER_WORKER, SlotRing, SlottedTask
from paraload.executors.threads import ThreadExecutor
from paraload.runtime.daemon_threads import PATIENCE_S
from paraload.runtime.interrupts import interrupts_deferred
from paraload.workers.read_context import ReadContext
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink

_PLAIN_READS: Final = (LocateTask, RunsTask, SharedTask)
_CHECK_WORKERS_S: Final = 0.2
#: How long to wait for the exit code of a worker that is known to have died.
_PATIENCE_WITH_DEAD_S: Final = 1.0
#: Workers without hooks only read, which the caller does with one copy less. So they yield to it
#: where there are not cores for all: a tenth faster on 2 cores, no difference elsewhere.
_NICENESS_OF_READERS: Final = 10


class ProcessExecutor:
    """:class:`~paraload.executors.base.ReadExecutor` on worker processes.

    ``kind`` of pool is "processes" or "pool". If the system refuses to start processes, threads do
    the work. The caller reads what is longer than ``slot_bytes``, a slot of shared memory.
    """

    stuck_hint = "The worker processes were ended"

    def __init__(self, kind: str, workers: int, slot_bytes: int) -> None:
        self.name = self._kind = kind
        self.workers = workers
        self.downgrades: list[str] = []
        self.slot_bytes = slot_bytes
        self._resources = ExitStack()
        self._threads: ThreadExecutor | None = None  # instead of processes

    def start(self, context: ReadContext, targets: Mapping[int, TargetMemory]) -> None:
        """Make the pool, which starts its workers now or with the first tasks."""
        require_startable(context)
        self._context, self._targets = context, targets
        self._threads = None
        self._waiting: deque[ReadTask] = deque()
        self._in_flight: dict[int, ReadTask] = {}  # by slot
        self._lent: list[int] = []  # the slot of the result that the caller has now
        self._answers: Answers = SimpleQueue()
        self._try_or_use_threads(self._make_pool)

    def _make_pool(self) -> None:
        context, resources = self._context, self._resources
        niceness = 0 if context.hooks or context.decoders else _NICENESS_OF_READERS
        self._processes = WorkerContext(with_main=bool(defined_in_main(context)), niceness=niceness)
        resources.callback(self._processes.close)
        self._ring = SlotRing(SLOTS_PER_WORKER * self.workers, self.slot_bytes)
        resources.callback(self._ring.close)
        initargs = context, self._ring.name, self.slot_bytes
        pool = FuturesPool if self._kind == "processes" else MultiprocessingPool
        self._pool = pool(self._processes, self.workers, initargs, self._answers)
        resources.callback(lambda: self._pool.close(orderly=not self._in_flight))

    def _try_or_use_threads(self, step: Callable[[], None]) -> None:
        """Take a step that may start processes; go on with threads if the system refuses."""
        try:
            with interrupts_deferred():
                step()
        except Exception as error:
            is_refusal = isinstance(error, OSError | ImportError | NotImplementedError)
            if not is_refusal and "start new thread" not in str(error):
                raise
            refusal = str(error)
        else:
            return
        self.close()  # not in the handler: the error's frames hold the locks of half-made objects
        self.downgrades.append(f"threads instead of {self._kind}: {refusal}")
        self._threads = threads = ThreadExecutor(self.workers)
        threads.downgrades = self.downgrades
        threads.start(self._context, self._targets)
        self.name, self.workers = threads.name, threads.workers
        self.stuck_hint = threads.stuck_hint
        for task in [*self._in_flight.values(), *self._waiting]:
            threads.submit(task)

    def capacity(self) -> int:
        """One more than there are slots, for the caller's thread."""
        if self._threads is not None:
            return self._threads.capacity()
        in_flight = len(self._in_flight) + len(self._waiting)
        return SLOTS_PER_WORKER * self.workers + 1 - in_flight

    def submit(self, task: ReadTask) -> None:
        if self._threads is not None:
            self._threads.submit(task)
            return
        self._waiting.append(task)
        self._send_tasks()

    def _send_tasks(self) -> None:
        """Send tasks to workers as long as there are slots."""
        self._ring.release_views()
        self._ring.free += self._lent
        self._lent = []
        while self._waiting and self._ring.free and self._threads is None:
            slot = self._ring.free.pop()
            task = self._in_flight[slot] = self._waiting.popleft()
            self._try_or_use_threads(partial(self._pool.submit, SlottedTask(task, slot)))

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        if self._threads is None:
            self._send_tasks()
        if self._threads is not None:
            return self._threads.ready(timeout_s)
        if self._waiting and self._answers.empty() and isinstance(self._waiting[0], _PLAIN_READS):
            return [self._run_here(self._waiting.popleft())]
        if (answer := self._next_answer(timeout_s)) is None:
            return ()
        slot, result = answer
        if isinstance(result, BaseException):
            if isinstance(result, BrokenExecutor):
                raise self._died(_PATIENCE_WITH_DEAD_S) from result
            raise result
        task = self._in_flight.pop(slot)
        self._lent = [slot]
        if result is None:  # longer than a slot
            return [self._run_here(task)]
        return [self._ring.deliver(result, slot, self._targets)]

    def _run_here(self, task: ReadTask) -> TaskResult:
        return run_task(task, self._context, TargetSink(self._targets))

    def _next_answer(
        self, timeout_s: float | None
    ) -> tuple[int, TaskResult | BaseException | None] | None:
        until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = until_s - time.monotonic()
            with suppress(Empty):
                return self._answers.get(timeout=max(0.0, min(left_s, _CHECK_WORKERS_S)))
            if self._processes.dead_workers():
                raise self._died()
            if left_s <= 0:
                return None

    def _died(self, patience_s: float = 0.0) -> WorkerDiedError:
        ended = self._processes.dead_workers(patience_s=patience_s)
        is_starting = not self._ring.has_started_worker
        return worker_died(self.running(), ended, self._context, is_starting=is_starting)

    def running(self) -> Sequence[ReadTask]:
        if self._threads is not None:
            return self._threads.running()
        return list(self._in_flight.values())

    def close(self, patience_s: float = PATIENCE_S) -> None:
        with interrupts_deferred():
            self._resources.close()
        if self._threads is not None:
            self._threads.close(patience_s)
